"""Loading and saving models: the built-in one, a local folder, or a LoRA adapter on top of either."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import torch
from transformers import AutoTokenizer

from disp.errors import DispError, unknown_name
from disp.models.interface import MDLM
from disp.models.llada_v import LladaV, LladaVConfig

BUILTIN = "builtin"
FAMILIES = {LladaVConfig.model_type: (LladaV, LladaVConfig)}


def load_model(name: str | Path = BUILTIN, *, device: str | None = None) -> MDLM:
    """Load a model for inference, in float32 on a CPU and bfloat16 on a GPU.

    Args:
        name: "builtin", a folder written by `save_model`, or a folder with a PEFT adapter of such a model.
        device: where to put it; the first GPU if there is one, otherwise the CPU.

    Raises:
        DispError: the folder or a file in it is missing, or the model is of no known family.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(str(resources.files("disp.models") / "builtin")) if str(name) == BUILTIN else Path(name)
    if (folder / "adapter_config.json").is_file():
        return _load_adapter(folder, device)
    config = _read_json(folder / "config.json", f"model {str(name)!r}")
    kind = config.get("model_type", "")
    if kind not in FAMILIES:
        raise unknown_name(f"model type in {folder / 'config.json'}:", kind, FAMILIES)
    if not (folder / "model.safetensors").is_file() and not (folder / "model.safetensors.index.json").is_file():
        raise DispError(f"model {str(name)!r}: no model.safetensors in {folder}; disp reads no other weight format")
    model_class, _ = FAMILIES[kind]
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = model_class.from_pretrained(folder, dtype=dtype, local_files_only=True)
    model.tokenizer = AutoTokenizer.from_pretrained(folder, config=model.config, local_files_only=True)
    return model.to(device).eval()  # type: ignore[arg-type]  # the library's decorator hides `self`


def save_model(model: MDLM, folder: Path) -> None:
    """Write weights (safetensors), config and tokenizer, so that `load_model` reads them back."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def _load_adapter(folder: Path, device: str) -> MDLM:
    from peft import PeftModel

    base_name = _read_json(folder / "adapter_config.json", "adapter").get("base_model_name_or_path") or ""
    base = load_model(base_name, device=device)
    tokenizer = base.tokenizer
    merged = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    merged.tokenizer = tokenizer
    return merged.eval()


def _read_json(path: Path, what: str) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DispError(
            f"{what}: {path} does not exist; give {BUILTIN!r} or a folder with config.json and model.safetensors"
        ) from None
    except (OSError, ValueError) as error:
        raise DispError(f"{what}: {path} cannot be read ({error})") from None
