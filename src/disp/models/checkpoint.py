"""Reading published checkpoints from sharded safetensors into a model.

A checkpoint of eight billion parameters never lies in memory twice: the model is built without storage and each
tensor is put into place, in its final type and on its final device, as it is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from disp.errors import DispError
from disp.models.quantization import is_quantized, quantize_linear
from disp.words import shortened

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

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
        raise DispError(f"{what}: {path} cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise DispError(f"{what}: {path} holds no JSON object")
    return value


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


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Key name and tensor of everything in a checkpoint, one tensor in memory at a time.

    Raises:
        DispError: a weight file is missing or damaged.
    """
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise DispError(f"{path} is no readable safetensors file ({error}); download it again") from None


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
        DispError: keys are missing or surplus (all are counted, the first are listed), or a shape differs.
    """
    expected = model.state_dict(keep_vars=True)
    ignored: dict[str, Tensor] = {}
    surplus, shapes, found = [], [], set()
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
        _assign(model, name, tensor, dtype, device(name) if callable(device) else device)
    missing = sorted(expected.keys() - found)
    problems = [
        f"{len(names)} {kind} ({first_few(names)})"
        for kind, names in (("missing keys", missing), ("surplus keys", surplus), ("wrong shapes", shapes))
        if names
    ]
    if problems:
        raise DispError(f"{what}: the weights do not fit the config: {'; '.join(problems)}")
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
