"""A fine-tuned projector alone: read from the files that LLaVA's and LLaDA-V's scripts write, and saved as an adapter.

These scripts leave ``mm_projector.bin`` (or, beside low-rank adapters, ``non_lora_trainables.bin``), which is a pickle.
It is read where the user names the file, by torch's restricted unpickler, which makes tensors and nothing else.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from disp.errors import DispError
from disp.files import write_atomically
from disp.halving import of_machine
from disp.models.checkpoint import first_few, is_pointer, remedy
from disp.models.interface import MDLM
from disp.models.weights import fault_of

PROJECTOR = "mm_projector.safetensors"
PICKLES = (".bin", ".pt", ".pth")
_SHOWN = 4


def read_projector(file: Path) -> dict[str, Tensor]:
    """The tensors of a projector's file by the names that they have in it.

    Raises:
        DispError: the file is missing, damaged, of another kind, or holds anything but tensors.
    """
    if not file.is_file():
        raise DispError(f"projector {file} does not exist; give the file, such as {PROJECTOR} or mm_projector.bin")
    if file.suffix == ".safetensors":
        try:
            return _checked(load_file(file), file)
        except (SafetensorError, OSError) as error:
            raise DispError(f"{file} is no readable safetensors file ({error}); {remedy(file)}") from None
    if file.suffix not in PICKLES:
        raise DispError(f"projector {file}: give a .safetensors file, or one of torch's ({', '.join(PICKLES)})")
    if is_pointer(file):
        raise DispError(f"projector {file} is not there yet; {remedy(file)}")
    try:
        values = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error: ")[-1].splitlines()[0]
        raise DispError(
            f"projector {file} holds more than weights ({reason}) and was not loaded; save its tensors as safetensors "
            "on a machine that trusts it"
        ) from None
    except Exception as error:  # of damaged bytes torch's reader raises nothing more particular
        if of_machine(error):
            raise
        raise DispError(
            f"projector {file} cannot be read ({' '.join(str(error).split())[:200]}); copy it again"
        ) from None
    if not isinstance(values, dict):
        raise DispError(f"projector {file} holds a {type(values).__name__}, not tensors by name")
    wrong = [str(name) for name, value in values.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if wrong:
        raise DispError(
            f"projector {file}: {first_few(wrong, _SHOWN)} is no tensor; save the projector's weights alone"
        )
    return _checked(values, file)


def _checked(weights: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The same tensors, none of which a projector cannot have."""
    for name, tensor in weights.items():
        if fault := fault_of(tensor):
            raise DispError(f"projector {file}: {name} {fault}; save the projector's weights as they were trained")
    return weights


def put_projector(model: MDLM, weights: dict[str, Tensor], what: str) -> None:
    """Give a model the weights of a projector that was fine-tuned for it.

    Args:
        model: the model, changed in place.
        weights: by name; in front of the projector's own name there may be any other, such as PEFT's.
        what: names the file in errors.

    Raises:
        DispError: the model has no projector, weights are missing or surplus, or their shapes are those of another.
    """
    own = projector_parameters(model)
    if not own:
        raise DispError(
            f"{what}: {type(model).__name__} has no projector; the file belongs to a model of another family"
        )
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        matching = [each for each in own if _tail(model, each) == _tail(model, name)]
        if len(matching) != 1:
            raise DispError(
                f"{what}: {name} is no weight of the model's projector ({first_few(sorted(own), _SHOWN)}); give the "
                "projector alone"
            )
        if matching[0] in found:
            raise DispError(f"{what}: {matching[0]} is there twice, once as {name}; save one projector alone")
        found[matching[0]] = tensor
    if missing := sorted(own.keys() - found.keys()):
        raise DispError(f"{what} lacks {first_few(missing, _SHOWN)}; a projector is taken whole or not at all")
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise DispError(
                f"{what}: {name} has the shape {tuple(tensor.shape)}, the model's {tuple(own[name].shape)}; the "
                "projector belongs to another model"
            )
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)


def save_projector(model: MDLM, file: Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write the projector's weights as safetensors, under the published key names.

    Args:
        model: whose projector.
        file: where to.
        state_dict: the model's weights, where they have been gathered from several processes.
    """
    names = projector_parameters(model)
    state = model.state_dict() if state_dict is None else state_dict
    official = {}
    for name in names:
        (published, *_) = model.official_state_dict({name: state[name]})
        official[published] = state[name].detach().cpu().contiguous().clone()
    write_atomically(file, lambda temporary: save_file(official, temporary, metadata={"format": "pt"}))


def projector_parameters(model: MDLM) -> dict[str, Tensor]:
    """The parameters of the model's projector by name; none where the family has no projector."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if any(part in name for part in model.projector_names)
    }


def _tail(model: MDLM, name: str) -> str | None:
    """A parameter's name from that of the projector on; None where that is not in it."""
    places = [name.index(part) for part in model.projector_names if part in name]
    return name[min(places) :] if places else None
