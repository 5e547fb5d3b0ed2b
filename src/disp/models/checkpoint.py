"""Reading published checkpoints from sharded safetensors into a model.

A checkpoint of eight billion parameters never lies in memory twice: the model is built without storage and each
tensor is put into place, in its final type and on its final device, as it is read.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from disp.errors import DispError
from disp.models.quantization import is_quantized, quantize_linear
from disp.words import shortened

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

# How the text begins that git-lfs leaves in a file's place.
POINTER = b"version https://git-lfs"

_SHOWN = 8

Model = TypeVar("Model", bound=nn.Module)


def read_json(path: Path, what: str = "checkpoint") -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        DispError: the file is missing, unreadable or holds something else; ``what`` says whose it is.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DispError(f"{what}: {path} does not exist; give a folder with config.json and safetensors") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DispError(f"{what}: {path} cannot be read ({error}); {remedy(path)}") from None
    if not isinstance(value, dict):
        raise DispError(f"{what}: {path} holds no JSON object; copy or download it again")
    return value


def is_pointer(file: Path) -> bool:
    """Whether git-lfs has yet to fetch a file."""
    with file.open("rb") as opened:
        return opened.read(len(POINTER)) == POINTER


def remedy(file: Path) -> str:
    """What to do about a file that cannot be read, for the end of an error."""
    try:
        if is_pointer(file):
            return "git-lfs has yet to fetch it (git lfs pull)"
        with file.open("rb") as opened:
            if opened.read(len(BOM_UTF8)) == BOM_UTF8:
                return "save it as UTF-8 without a byte order mark"
    except OSError:
        pass
    return "copy or download it again"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: its shards if there is an index, otherwise the single file.

    Raises:
        DispError: there are none, the index cannot be read, or a shard that it names is missing.
    """
    index = folder / INDEX
    if not index.is_file():
        if (folder / WEIGHTS).is_file():
            return [folder / WEIGHTS]
        raise DispError(f"no {WEIGHTS} or {INDEX} in {folder}; disp reads no other weight format")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not all(isinstance(name, str) for name in names):
            raise ValueError("it names files by what is no text")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        # The error in its own form may hold the whole file.
        reason = shortened(f"{type(error).__name__}: {error}")
        raise DispError(f"{index} cannot be read ({reason}); download the file again") from None
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise DispError(
            f"{folder}: {len(missing)} of {len(names)} weight files named in {INDEX} are missing "
            f"({first_few(missing)}); download the checkpoint again"
        )
    return [folder / name for name in names]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DispError(f"{path} is no readable safetensors file ({error}); {remedy(path)}") from None


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Key name and tensor of everything in a checkpoint, one tensor in memory at a time.

    Raises:
        DispError: a weight file is missing or damaged.
    """
    for path in weight_files(folder):
        with _opened(path) as file:
            for name in file.keys():
                yield name, file.get_tensor(name)


def stored_types(folder: Path) -> dict[str, str]:
    """Key names in a checkpoint, and the types of their tensors as safetensors calls them, such as "F32".

    Raises:
        DispError: a weight file is missing or damaged.
    """
    types: dict[str, str] = {}
    for path in weight_files(folder):
        with _opened(path) as file:
            types.update({name: file.get_slice(name).get_dtype() for name in file.keys()})
    return types


def integers_among(types: Mapping[str, str], expected: Mapping[str, Tensor]) -> list[str]:
    """Of stored tensors, those that are not of floating-point numbers although the model's are.

    Args:
        types: see `stored_types`.
        expected: the model's tensors by the same names.
    """
    return [
        f"{name} is {kind}"
        for name, kind in types.items()
        if name in expected and expected[name].is_floating_point() and not kind.startswith(("F", "BF"))
    ]


def check_fit(
    what: str,
    *,
    missing: Collection[str] = (),
    surplus: Collection[str] = (),
    shapes: Collection[str] = (),
    integers: Collection[str] = (),
) -> None:
    """Make sure that nothing is wrong with a checkpoint's weights.

    Args:
        what: names the checkpoint in the error.
        missing: keys that it lacks.
        surplus: keys that the model does not have.
        shapes: tensors of another shape.
        integers: tensors that are not of floating-point numbers.

    Raises:
        DispError: something is; all are counted, the first are listed.
    """
    kinds = {
        "missing keys": missing,
        "surplus keys": surplus,
        "wrong shapes": shapes,
        "weights that are no floating-point numbers, as in quantized checkpoints": integers,
    }
    problems = [f"{len(names)} {kind} ({first_few(sorted(names))})" for kind, names in kinds.items() if names]
    if problems:
        raise DispError(
            f"{what}: the weights do not fit the config: {'; '.join(problems)}; give weights and config.json as they "
            "were written together, not quantized"
        )


def stored_dtype(folder: Path) -> torch.dtype:
    """The type of a checkpoint's first floating-point tensor."""
    return next((tensor.dtype for _, tensor in read_weights(folder) if tensor.is_floating_point()), torch.float32)


def load_into(
    model: nn.Module,
    weights: Iterable[tuple[str, Tensor]],
    key_map: Callable[[str], str],
    *,
    dtype: torch.dtype,
    device: str | torch.device | Callable[[str], str | torch.device] = "cpu",
    ignore: Sequence[str] = (),
    what: str = "checkpoint",
) -> dict[str, Tensor]:
    """Put a checkpoint's tensors into a model, whose own tensors may be without storage ("meta").

    Args:
        model: receives the tensors, which are assigned, not copied.
        weights: key name and tensor, see `read_weights`.
        key_map: from the checkpoint's key to the model's.
        dtype: of floating-point tensors.
        device: where to put them; or a function from the model's key to it.
        ignore: regular expressions for keys that the model does without.
        what: names the checkpoint in errors.

    Returns:
        The ignored tensors under the checkpoint's keys, so that they can be written back.

    Raises:
        DispError: keys are missing or surplus (all are counted, the first are listed), a shape differs, or weights are
            of integers.
    """
    expected = model.state_dict(keep_vars=True)
    ignored: dict[str, Tensor] = {}
    surplus, shapes, integers, found = [], [], [], set()
    for key, tensor in weights:
        if any(re.fullmatch(pattern, key) for pattern in ignore):
            ignored[key] = tensor
            continue
        name = key_map(key)
        if name not in expected or name in found:
            surplus.append(key)
            continue
        found.add(name)
        if tensor.shape != expected[name].shape and not is_quantized(expected[name]):
            shapes.append(f"{key} is {list(tensor.shape)}, the config asks for {list(expected[name].shape)}")
            continue
        if not tensor.is_floating_point() and (expected[name].is_floating_point() or is_quantized(expected[name])):
            integers.append(f"{key} is {str(tensor.dtype).removeprefix('torch.')}")
            continue
        _assign(model, name, tensor, dtype, device(name) if callable(device) else device)
    check_fit(what, missing=expected.keys() - found, surplus=surplus, shapes=shapes, integers=integers)
    return ignored


def assemble(
    make: Callable[[], Model],
    weights: Iterable[tuple[str, Tensor]],
    key_map: Callable[[str], str],
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    device_map: str | Mapping[str, Any] | None = None,
    quantization: str | None = None,
    quantized: Callable[[str], bool] = lambda name: True,
    ignore: Sequence[str] = (),
    what: str = "checkpoint",
) -> tuple[Model, dict[str, Tensor]]:
    """Build a model without storage and load a checkpoint into it; the arguments of `load_into`, and these.

    Args:
        make: builds the model.
        weights: see `load_into`.
        key_map: see `load_into`.
        dtype: see `load_into`.
        device: where the whole model goes, unless ``device_map`` is given.
        device_map: "auto" or the like, or a mapping from module names to devices, as accelerate takes it.
        quantization: "4bit" or "8bit" linear layers through bitsandbytes.
        quantized: which linear layers that holds for, by their full names.
        ignore: see `load_into`.
        what: see `load_into`.

    Returns:
        The model in evaluation mode, and the ignored tensors.

    Raises:
        DispError: as `load_into`; or ``quantization`` is unknown or bitsandbytes is not installed.
    """
    with torch.device("meta"):
        model = make()
    if quantization is not None:
        quantize_linear(model, quantization, dtype, quantized)
    places = _places(model, device_map, dtype, what) if device_map is not None else {"": device}

    def place(name: str) -> str | torch.device:
        return places[max((key for key in places if not key or name == key or name.startswith(f"{key}.")), key=len)]

    ignored = load_into(model, weights, key_map, dtype=dtype, device=place, ignore=ignore, what=what)
    stray = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if stray:
        raise ValueError(f"buffers that no checkpoint holds were built without storage: {', '.join(stray)}")
    if len(set(places.values())) > 1:
        from accelerate import dispatch_model  # type: ignore[import-untyped]

        dispatch_model(model, places)
    return model.eval(), ignored


def _places(model: nn.Module, device_map: str | Mapping[str, Any], dtype: torch.dtype, what: str) -> dict[str, Any]:
    """Which module goes to which device."""
    if not isinstance(device_map, str):
        return dict(device_map)
    from accelerate import infer_auto_device_map
    from accelerate.utils import CustomDtype, get_balanced_memory  # type: ignore[import-untyped]

    bits = {"Params4bit": CustomDtype.INT4, "Int8Params": torch.int8}
    options: dict[str, Any] = {
        "no_split_module_classes": list(getattr(model, "_no_split_modules", None) or ()),
        "dtype": dtype,
        "special_dtypes": {
            name: bits[type(tensor).__name__] for name, tensor in model.named_parameters() if is_quantized(tensor)
        },
    }
    memory = None
    if device_map != "sequential":
        memory = get_balanced_memory(model, low_zero=device_map == "balanced_low_0", **options)
    places = dict(infer_auto_device_map(model, max_memory=memory, **options))
    if "disk" in places.values():
        raise DispError(
            f"{what}: the model fits neither the devices nor the memory of this machine; use more devices, or "
            "quantization '8bit' or '4bit'"
        )
    return places


def _assign(model: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype, device: str | torch.device) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    old = getattr(module, leaf)
    if tensor.is_floating_point():
        tensor = tensor.to(dtype)
    if is_quantized(old):
        # Moving the new parameter to its device is what quantizes it.
        module._parameters[leaf] = type(old)(tensor, requires_grad=False, **old.__dict__).to(device)
    elif isinstance(old, nn.Parameter):
        module._parameters[leaf] = nn.Parameter(tensor.to(device), requires_grad=tensor.is_floating_point())
    else:
        module._buffers[leaf] = tensor.to(device)


def first_few(names: Sequence[str], shown: int = _SHOWN) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
