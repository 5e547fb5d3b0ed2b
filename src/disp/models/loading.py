"""Loading models: the built-in one, a published checkpoint, or an adapter on top of either."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from disp.errors import DispError, unknown_name
from disp.files import UNFINISHED
from disp.halving import of_machine
from disp.models.adapters import base_of, check_adapter, check_new, is_adapter, put_on
from disp.models.checkpoint import read_json, stored_dtype, weight_files
from disp.models.families import FAMILIES, recognise
from disp.models.family import Family
from disp.models.hub import BUILTIN, lasting_name, local_folder, resolve
from disp.models.interface import MDLM
from disp.models.parts.prompts import check_template
from disp.models.parts.transformer import use_attention
from disp.models.projector import put_projector, read_projector
from disp.models.settings import MOST_SLOTS, check_settings, check_whole
from disp.models.weights import check_finite
from disp.words import shortened

# What building a model from a config with wrong values ends in.
_DAMAGED = (
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    IndexError,
    ArithmeticError,
    RecursionError,
    RuntimeError,
)


def load_model(
    name: str | Path = BUILTIN,
    *,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    quantization: str | None = None,
    gen_length: int | None = None,
    projector: Path | None = None,
) -> MDLM:
    """Load a model for inference.

    Args:
        name: "builtin"; a folder with a published checkpoint, or one written by `save_model`; a folder with a PEFT
            adapter or a projector of such a model; or a published checkpoint's id on the Hugging Face hub, which is
            downloaded once (safetensors, JSON and tokenizer files only). A folder needs no network.
        device: where to put it; the first GPU if there is one, otherwise the CPU.
        dtype: of the weights, "auto" for the checkpoint's own; float32 on a CPU and bfloat16 on a GPU by default.
        device_map: spread a published model over devices, as accelerate takes it: "auto", or modules to devices.
        attn_implementation: see `disp.models.parts.transformer.use_attention`.
        quantization: "4bit" or "8bit" weights of a published model's language model, through bitsandbytes.
        gen_length: response slots, for training and as the default of decoding, if not the model's own.
        projector: a file with a fine-tuned projector, which takes the place of the model's own; see
            `disp.models.projector.read_projector`.

    Raises:
        DispError: a file is missing or does not fit, the model is of no known family, or it cannot be loaded as asked.
    """
    device = chosen_device(device)
    model = load_for(name, None, device, dtype, device_map=device_map, quantization=quantization, projector=projector)
    if attn_implementation is not None:
        use_attention(model, attn_implementation)
    if gen_length is not None:
        model.use_gen_length(check_whole(gen_length, "gen_length", most=MOST_SLOTS))
    return model.eval()


def check_model(name: str | Path, *, device: str | None = None, **options: Any) -> None:
    """Make sure that a model can be loaded as asked, as far as that is seen without weights and without the network.

    Args:
        name: see `load_model`; nothing is said of one that only the Hugging Face hub can have.
        device: see `load_model`.
        options: further options of the family's loader, as `load_for` takes them.

    Raises:
        DispError: there is no such device or folder, a file is missing, or the model is of no known family.
    """
    chosen_device(device)
    adapters: list[Path] = []
    folder = local_folder(name)
    while folder is not None and is_adapter(folder):
        adapters.append(folder)
        name = base_of(folder)
        if (folder := local_folder(name)) is not None:
            check_new(folder, adapters)
    if folder is not None:
        _check_whole(folder, str(name), options)


def load_for(
    name: str | Path,
    base: str | Path | None,
    device: str,
    dtype: torch.dtype | str | None,
    *,
    projector: Path | None = None,
    **options: Any,
) -> MDLM:
    """A whole model, or one with its adapters and a projector put on.

    Args:
        name: see `load_model`.
        base: what the adapter ``name`` belongs to, if not what it says itself.
        device: where to put it.
        dtype: see `load_model`.
        projector: see `load_model`.
        options: further options of the family's loader; those that are None are left out.

    Raises:
        DispError: see `load_model`.
    """
    adapters, folder = [], resolve(name)
    weights = None if projector is None else read_projector(projector)
    while is_adapter(folder):
        check_adapter(folder, projector)
        adapters.append(folder)
        name, base = base or base_of(folder), None
        folder = resolve(name)
        check_new(folder, adapters)
    model = _load_whole(folder, str(name), device, dtype, options)
    for adapter in reversed(adapters):
        model = put_on(model, adapter)
    if weights is not None:
        put_projector(model, weights, str(projector))
    return model


def chosen_device(name: str | None) -> str:
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


def family_of(folder: Path, name: str | None = None) -> Family:
    """The family of the checkpoint in a folder; ``name`` is what the model is called in errors, if not the folder.

    Raises:
        DispError: config.json is missing, or no family knows it.
    """
    config = read_json(folder / "config.json", f"model {(name or folder.name)!r}")
    found = recognise(config)
    if found is None:
        raise unknown_name(f"model type in {folder / 'config.json'}:", str(config.get("model_type", "")), FAMILIES)
    return found


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


def _check_whole(folder: Path, name: str, options: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
    """The family of a checkpoint, and the options that its loader is to be given."""
    if (folder / UNFINISHED).exists():
        raise DispError(f"model {name!r}: its writing was stopped midway; start the command that writes it again")
    own = family_of(folder, name)
    weight_files(folder)
    chosen = {key: value for key, value in options.items() if value is not None}
    unknown = sorted(chosen.keys() - set(own.options))
    if unknown:
        raise DispError(f"model {name!r}: {', '.join(unknown)} is not available for the family {own.name}")
    return own, chosen


def _load_whole(
    folder: Path, name: str, device: str, wanted: torch.dtype | str | None, options: Mapping[str, Any]
) -> MDLM:
    own, chosen = _check_whole(folder, name, options)
    dtype = _dtype(wanted, folder, device)
    try:
        model = own.load(folder, dtype=dtype, device=device, **chosen)
    except ModuleNotFoundError as missing:
        raise DispError(
            f"model {name!r}: the family {own.name} is not available in this installation ({missing})"
        ) from None
    except _DAMAGED as error:
        if of_machine(error):
            raise
        reason = shortened(" ".join(f"{type(error).__name__}: {error}".split()))
        raise DispError(
            f"model {name!r}: its config.json or another of its files is damaged ({reason}); copy the folder anew"
        ) from error
    check_settings(model, f"model {name!r}: config.json")
    if getattr(model, "tokenizer", None) is not None:
        check_template(model)
    check_finite(model, f"model {name!r}")
    model.generation_presets = own.presets(read_json(folder / "config.json"))
    if own.keeps_layout:
        model.source = folder
    model.name_or_path = model.config._name_or_path = lasting_name(name)
    return model
