"""Adapters: low-rank ones in PEFT's format and projectors, with the number of response slots beside them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from disp.errors import DispError
from disp.files import named_if_unwritable, write_json
from disp.halving import of_machine
from disp.models.checkpoint import first_few, read_json
from disp.models.interface import MDLM
from disp.models.projector import PROJECTOR, put_projector, read_projector, save_projector
from disp.models.saving import readable
from disp.models.settings import MOST_SLOTS, check_whole
from disp.models.weights import fault_of

if TYPE_CHECKING:
    from peft import PeftModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Beside an adapter's own files: what it was trained with that these have no place for.
_SETTINGS = "disp.json"
# What LLaVA's and LLaDA-V's scripts write beside low-rank adapters: the projector that was trained with them.
_BESIDE = "non_lora_trainables.bin"


@contextmanager
def false_alarms_off() -> Iterator[None]:
    """Without what PEFT warns of while it puts adapters on a model, and what nobody can or has to act on."""
    with warnings.catch_warnings():
        # It looks for shared layers under both of their names; `_not_filled` looks better.
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        # It asks the library by a name that is to go.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / CONFIG).is_file() or ((folder / PROJECTOR).is_file() and (folder / _SETTINGS).is_file())


def base_of(folder: Path) -> str:
    """The name of the model that an adapter was trained on.

    Raises:
        DispError: it names none, or its config cannot be read.
    """
    file, key = (CONFIG, "base_model_name_or_path") if (folder / CONFIG).is_file() else (_SETTINGS, "base")
    base = read_json(folder / file, "adapter").get(key)
    if not base:
        raise DispError(f"adapter {folder}: {file} does not name its base model; give it with `disp merge --base`")
    return str(base)


def check_new(folder: Path, adapters: Sequence[Path]) -> None:
    """Make sure that a search for the base of adapters does not come back to one of them.

    Args:
        folder: what the last of them names as its base.
        adapters: those found before, each the base of the one before it.

    Raises:
        DispError: the folder is one of them.
    """
    if folder.resolve() in [each.resolve() for each in adapters]:
        raise DispError(
            f"adapter {adapters[0]}: its base leads back to the adapter {folder}, so there is no whole model; give the "
            "model that it was trained on with `disp merge --base`"
        )


def check_adapter(folder: Path, projector: Path | None = None) -> None:
    """Make sure that an adapter can be read whole, before its base is loaded.

    Args:
        folder: the adapter.
        projector: the projector's file, if the user names one.

    Raises:
        DispError: its weights are missing, damaged or a pickle, or a projector that was trained with it would be left
            out.
    """
    if not (folder / CONFIG).is_file():
        return
    if not (folder / WEIGHTS).is_file():
        if (folder / "adapter_model.bin").is_file():
            raise DispError(
                f"adapter {folder} has adapter_model.bin alone, a pickle, which disp does not read; load it with PEFT "
                f"on a machine that trusts it and save it with safe_serialization=True, which writes {WEIGHTS}"
            )
        raise DispError(f"adapter {folder}: {WEIGHTS} is missing; copy it beside {CONFIG}")
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            faults = {name: fault_of(file.get_tensor(name)) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise DispError(
            f"{folder / WEIGHTS} is no readable safetensors file ({error}); download it again (git lfs pull)"
        ) from None
    for name, fault in faults.items():
        if fault:
            raise DispError(f"{folder / WEIGHTS}: {name} {fault}; train the adapter again, or copy it anew")
    if (folder / _BESIDE).is_file() and projector is None:
        raise DispError(
            f"adapter {folder}: the projector that was trained with it is in {_BESIDE}, a pickle; give that file with "
            "--projector, which reads nothing but tensors from it"
        )


def put_on(model: MDLM, folder: Path) -> MDLM:
    """The model with an adapter's low-rank weights added to its own, or with its projector in place of its own.

    Raises:
        DispError: the adapter does not fit the model.
    """
    if (folder / CONFIG).is_file():
        merged = _with_low_rank(model, folder)
    else:
        put_projector(model, read_projector(folder / PROJECTOR), str(folder / PROJECTOR))
        merged = model
    merged.adapter = str(folder)  # an adapter of this one would name the base alone
    if (folder / _SETTINGS).is_file():
        gen_length = read_json(folder / _SETTINGS, "adapter").get("gen_length", merged.gen_length)
        if check_whole(gen_length, f"{folder / _SETTINGS}: gen_length", most=MOST_SLOTS) != merged.gen_length:
            merged.use_gen_length(gen_length)
    return merged.eval()


def _with_low_rank(model: MDLM, folder: Path) -> MDLM:
    from peft import PeftConfig, PeftModel

    try:
        config = PeftConfig.from_pretrained(str(folder))
        # For the task of a causal language model, PEFT asks for its left-to-right generation, which no MDLM has.
        config.task_type = None
        with false_alarms_off():
            adapted = PeftModel.from_pretrained(model, str(folder), config=config)
        # PEFT tells what it could not place to those alone who ask it to load once more.
        told = adapted.load_adapter(str(folder), "default")
        parts = {"missing": _not_filled(adapted, told.missing_keys), "surplus": told.unexpected_keys}
        if any(parts.values()):
            raise ValueError(
                ", ".join(f"{len(keys)} keys {word}: {first_few(keys, 1)}" for word, keys in parts.items() if keys)
            )
        merged = adapted.merge_and_unload()
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, re.error) as error:
        if of_machine(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DispError(
            f"adapter {folder} does not fit the base {model.name_or_path} ({reason}); give the model that it was "
            "trained on with `disp merge --base`"
        ) from None
    assert isinstance(merged, MDLM)
    return merged


def _not_filled(model: nn.Module, missing: Sequence[str]) -> list[str]:
    """Of the keys that a file lacks, those whose tensor no other key of the file has filled.

    Where two parts of a model share layers, a file has their tensors under one name only.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    filled = {id(tensor) for name, tensor in tensors.items() if name not in set(missing)}
    return [name for name in missing if name not in tensors or id(tensors[name]) not in filled]


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
    with named_if_unwritable(folder):
        adapted.save_pretrained(str(folder), state_dict=state_dict, save_embedding_layers=False)
        readable(folder)
    write_json(folder / _SETTINGS, {"gen_length": gen_length})


def save_projector_adapter(model: MDLM, folder: Path, *, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write the projector alone, with the name of the model that it belongs to, so that `load_model` finds both."""
    folder.mkdir(parents=True, exist_ok=True)
    save_projector(model, folder / PROJECTOR, state_dict)
    write_json(folder / _SETTINGS, {"base": model.name_or_path, "gen_length": model.gen_length})
