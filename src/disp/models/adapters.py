"""LoRA adapters: in PEFT's format, with the number of response slots beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from disp.errors import DispError
from disp.files import write_json
from disp.models.checkpoint import read_json
from disp.models.interface import MDLM
from disp.models.saving import readable

if TYPE_CHECKING:
    from peft import PeftModel

# Beside an adapter's own files: what it was trained with that PEFT's format has no place for.
_SETTINGS = "disp.json"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / "adapter_config.json").is_file()


def base_of(folder: Path) -> str:
    """The name of the model that an adapter was trained on.

    Raises:
        DispError: it names none, or its config cannot be read.
    """
    base = read_json(folder / "adapter_config.json", "adapter").get("base_model_name_or_path")
    if not base:
        raise DispError(f"adapter {folder}: adapter_config.json does not name its base model")
    return str(base)


def put_on(model: MDLM, folder: Path) -> MDLM:
    """The model with the low-rank weights of an adapter added to its own."""
    from peft import PeftModel

    merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    assert isinstance(merged, MDLM)
    merged.adapter = str(folder)  # an adapter of this one would name the base alone
    if (folder / _SETTINGS).is_file():
        gen_length = read_json(folder / _SETTINGS)["gen_length"]
        if gen_length != merged.gen_length:
            merged.use_gen_length(gen_length)
    return merged.eval()


def save_adapter(
    adapted: PeftModel, gen_length: int, folder: Path, *, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write a PEFT model's adapter in PEFT's format, and how many response slots it was trained with.

    Args:
        adapted: the PEFT model.
        gen_length: response slots.
        folder: where to.
        state_dict: the adapter's weights, where they have been gathered from several processes.
    """
    # No look at the base model for resized embeddings: none are, and the base may be on the network.
    adapted.save_pretrained(str(folder), state_dict=state_dict, save_embedding_layers=False)
    readable(folder)
    write_json(folder / _SETTINGS, {"gen_length": gen_length})
