"""Loading and saving models: the built-in one, a published checkpoint, or a LoRA adapter on top of either."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disp.errors import DispError
from disp.files import write_json
from disp.models.checkpoint import read_json, stored_dtype, weight_files, write_official
from disp.models.families import FAMILIES, detect, family
from disp.models.family import Family
from disp.models.interface import MDLM
from disp.models.parts.transformer import use_attention
from disp.models.quiet import no_bar

# The model that comes with `disp`: the name of its family.
BUILTIN = "builtin"
# What of a hub repository is downloaded: no pickles, no code.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
# Beside an adapter's own files: what it was trained with that PEFT's format has no place for.
_ADAPTER_SETTINGS = "disp.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_model(
    name: str | Path = BUILTIN,
    *,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    quantization: str | None = None,
    gen_length: int | None = None,
) -> MDLM:
    """Load a model for inference.

    Args:
        name: "builtin"; a folder with a published checkpoint, or one written by `save_model`; a folder with a PEFT
            adapter of such a model; or a published checkpoint's id on the Hugging Face hub, which is downloaded once
            (safetensors, JSON and tokenizer files only). A folder needs no network.
        device: where to put it; the first GPU if there is one, otherwise the CPU.
        dtype: of the weights, "auto" for the checkpoint's own; float32 on a CPU and bfloat16 on a GPU by default.
        device_map: spread a published model over devices, as accelerate takes it: "auto", or modules to devices.
        attn_implementation: see `disp.models.parts.transformer.use_attention`.
        quantization: "4bit" or "8bit" weights of a published model's language model, through bitsandbytes.
        gen_length: response slots, for training and as the default of decoding, if not the model's own.

    Raises:
        DispError: a file is missing or does not fit, the model is of no known family, or it cannot be loaded as asked.
    """
    device = _device(device)
    folder = resolve(name)
    options = {"device_map": device_map, "quantization": quantization}
    if (folder / "adapter_config.json").is_file():
        model = _load_adapter(folder, None, device=device, dtype=dtype, **options)
    else:
        model = _load_whole(folder, str(name), device, dtype, options)
    if attn_implementation is not None:
        use_attention(model, attn_implementation)
    if gen_length is not None:
        if gen_length < 1:
            raise DispError(f"gen_length must be at least 1, got {gen_length}")
        _set_gen_length(model, gen_length)
    return model.eval()


def _device(name: str | None) -> str:
    """The device of this name, the first GPU if there is one or the CPU if none is given.

    Raises:
        DispError: it is no device's name.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(name)
    except RuntimeError:
        raise DispError(f"device must be such as 'cpu', 'cuda' or 'cuda:1', got {name!r}") from None
    return name


def _set_gen_length(model: MDLM, gen_length: int) -> None:
    """Another response length, with as many denoising steps a token as before and the largest blocks that fit."""
    defaults = model.generation_defaults
    # A canvas is denoised in so many steps, however long the response is.
    if "steps" in defaults and defaults.get("sampler") != "canvas":
        block = math.gcd(defaults.get("block_length") or gen_length, gen_length)
        blocks = gen_length // block
        defaults["steps"] = blocks * max(1, round(defaults["steps"] * gen_length / model.gen_length / blocks))
        if defaults.get("block_length"):
            defaults["block_length"] = block
    model.gen_length = gen_length


def resolve(name: str | Path) -> Path:
    """The folder of a model: of the built-in one, a local one, or the copy of one on the hub.

    Raises:
        DispError: there is no such folder, and it is no id of a hub repository or cannot be downloaded.
    """
    own = _own_folder(name)
    if own is not None:
        return own
    if Path(name).exists() or isinstance(name, Path) or not _HUB_ID.fullmatch(name):
        if not Path(name).is_dir():
            raise DispError(
                f"model {str(name)!r}: {Path(name)} does not exist or is no folder; give {BUILTIN!r}, a folder with "
                "config.json and safetensors, or the id of a published checkpoint on the Hugging Face hub"
            )
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DispError(
            f"model {name!r} is no local folder and cannot be had from the Hugging Face hub ({reason}); check the "
            "name, or download the checkpoint on another machine and give its folder"
        ) from None


def _own_folder(name: str | Path) -> Path | None:
    """Where the model lies, if it is one that comes with `disp`."""
    return family(str(name)).folder if str(name) in FAMILIES else None


def family_of(folder: Path) -> Family:
    """The family of the checkpoint in a folder.

    Raises:
        DispError: config.json is missing, or no family knows it.
    """
    config = folder / "config.json"
    return detect(read_json(config, f"model {folder.name!r}"), str(config))


def save_model(model: MDLM, folder: Path, *, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write weights (safetensors), config and tokenizer, so that `load_model` reads them back.

    A published family is written under its published key names beside the config it came with, so that the published
    code can load it too.

    Args:
        model: the MDLM.
        folder: where to.
        state_dict: the model's weights, where they have been gathered from several processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source: Path | None = getattr(model, "source", None)
    if source is None:
        model.config.gen_length, model.config.generation = model.gen_length, dict(model.generation_defaults)
        with no_bar():
            model.save_pretrained(folder, state_dict=state_dict)
        _readable(folder)
    else:
        official = None
        if state_dict is not None:
            official = model.official_state_dict(state_dict)
        write_official(model, folder, source, state_dict=official)
        config = read_json(folder / "config.json")
        if model.gen_length != config.get("disp", {}).get("gen_length", model.config.gen_length):
            config["disp"] = {**config.get("disp", {}), "gen_length": model.gen_length}
            write_json(folder / "config.json", config)
    if getattr(model, "tokenizer", None) is not None:
        model.tokenizer.save_pretrained(folder)


def save_adapter(adapted: Any, gen_length: int, folder: Path, *, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write a PEFT model's adapter in PEFT's format, and how many response slots it was trained with.

    Args:
        adapted: the PEFT model.
        gen_length: response slots.
        folder: where to.
        state_dict: the adapter's weights, where they have been gathered from several processes.
    """
    # No look at the base model for resized embeddings: none are, and the base may be on the network.
    adapted.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)
    _readable(folder)
    write_json(folder / _ADAPTER_SETTINGS, {"gen_length": gen_length})


def _readable(folder: Path) -> None:
    """Weights that whoever may read the folder can read, as its other files: the library writes them for one user."""
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)


def merge(model_folder: str | Path, out: Path, base: str | Path | None = None) -> None:
    """Write a fine-tuned model as one checkpoint with its family's published key names.

    Args:
        model_folder: an adapter, whose low-rank weights are added to its base, or a whole model.
        out: folder for the checkpoint.
        base: the model that an adapter belongs to, if it no longer lies where it was.

    Raises:
        DispError: the model cannot be loaded, or ``out`` is the folder it is read from or holds anything.
    """
    folder = resolve(model_folder)
    if out.resolve() == folder.resolve():
        raise DispError(f"{out} holds the model that is to be merged; write to another folder")
    if out.is_dir() and any(out.iterdir()):
        raise DispError(f"{out} is not empty; write to another folder")
    if (folder / "adapter_config.json").is_file():
        model = _load_adapter(folder, base, device="cpu", dtype="auto")
    elif base is not None:
        raise DispError(f"{folder} is no adapter (no adapter_config.json), so it takes no base")
    else:
        model = _load_whole(folder, str(model_folder), "cpu", "auto", {})
    save_model(model, out)


def _dtype(dtype: torch.dtype | str | None, folder: Path, device: str) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device == "cpu" else torch.bfloat16
    if dtype == "auto":
        return stored_dtype(folder)
    if isinstance(dtype, str):
        found = getattr(torch, dtype, None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise DispError(f"dtype must be 'auto', 'float32', 'bfloat16' or 'float16', got {dtype!r}")
        return found
    return dtype


def _load_whole(
    folder: Path, name: str, device: str, wanted: torch.dtype | str | None, options: dict[str, Any]
) -> MDLM:
    config = read_json(folder / "config.json", f"model {name!r}")
    own = detect(config, str(folder / "config.json"))
    weight_files(folder)
    dtype = _dtype(wanted, folder, device)
    chosen = {key: value for key, value in options.items() if value is not None}
    unknown = sorted(chosen.keys() - set(own.options))
    if unknown:
        raise DispError(f"model {name!r}: {', '.join(unknown)} is not available for the family {own.name}")
    try:
        model = own.load(folder, dtype=dtype, device=device, **chosen)
    except ModuleNotFoundError as missing:
        raise DispError(
            f"model {name!r}: the family {own.name} is not available in this installation ({missing})"
        ) from None
    model.generation_presets = own.presets(config)
    if own.keeps_layout:
        model.source = folder  # type: ignore[assignment]  # no tensor
    model.name_or_path = model.config._name_or_path = _lasting_name(name)
    return model


def _lasting_name(name: str) -> str:
    """What `load_model` finds the same model by from any folder; PEFT writes it into the adapters that it saves."""
    return str(Path(name).resolve()) if _own_folder(name) is None and Path(name).exists() else name


def _load_adapter(folder: Path, base: str | Path | None, *, device: str, dtype: Any, **options: Any) -> MDLM:
    from peft import PeftModel

    base = base or read_json(folder / "adapter_config.json", "adapter").get("base_model_name_or_path") or ""
    if not str(base):
        raise DispError(f"adapter {folder}: adapter_config.json does not name its base model")
    model = load_model(base, device=device, dtype=dtype, **options)
    merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    for name in ("tokenizer", "source"):
        if hasattr(model, name):
            setattr(merged, name, getattr(model, name))
    merged.adapter = str(folder)  # an adapter of this one would name the base alone
    if (folder / _ADAPTER_SETTINGS).is_file():
        gen_length = read_json(folder / _ADAPTER_SETTINGS)["gen_length"]
        if gen_length != merged.gen_length:
            _set_gen_length(merged, gen_length)
    return merged.eval()
