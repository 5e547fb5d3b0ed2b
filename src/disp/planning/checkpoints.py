"""What the files of a checkpoint say without its weights being read: configs and headers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from disp.errors import DispError
from disp.models.checkpoint import is_pointer, read_json
from disp.models.families import all_families, recognise
from disp.models.settings import check_settings
from disp.models.sizes import Sizes


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a folder.

    Raises:
        DispError: there is no config.json, or it holds no JSON object.
    """
    file = folder / "config.json"
    if not file.exists():
        raise DispError(f"{folder} has no config.json; give the folder of a checkpoint")
    return read_json(file)


def sizes_of(config: Mapping[str, Any], folder: Path | None = None) -> Sizes:
    """Sizes of the model that a config.json describes.

    Args:
        config: its fields.
        folder: where it lies; None for a config alone.

    Raises:
        DispError: the config is of no known family, or lacks a field.
    """
    known = recognise(config)
    if known is None:
        names = ", ".join(each.title for each in all_families() if each.folder is None)
        raise DispError(
            f"config.json with model_type {config.get('model_type')!r} is of no family that disp plans for; give the "
            f"folder of a checkpoint of one of {names}, or 'builtin'"
        )
    try:
        sizes = known.sizes(config, folder)
        check_settings(sizes.model, "config.json")
        return sizes
    except KeyError as missing:
        raise DispError(f"config.json has no field {missing}; is it of a whole checkpoint of this family?") from None
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise DispError(
            f"config.json has a field of the wrong kind ({' '.join(str(error).split())}); download it again"
        ) from None


def stored_parameters(folder: Path) -> dict[str, int] | None:
    """Values of each tensor in a folder's safetensors files, by name, from the files' headers alone.

    Returns:
        None where the weights are not there, or only git-lfs's pointers to them.

    Raises:
        DispError: an index or a header is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in named.values()
        ):
            raise DispError(f"{index} names no weight files; download it again")
        names = sorted(set(named.values()))
    else:
        names = ["model.safetensors"]
    counts: dict[str, int] = {}
    for name in names:
        if not (folder / name).is_file() or is_pointer(folder / name):
            return None
        counts.update(_header(folder / name))
    return counts


def _header(file: Path) -> dict[str, int]:
    """Values of each tensor of a safetensors file."""
    try:
        with safe_open(file, framework="numpy") as opened:
            return {name: math.prod(opened.get_slice(name).get_shape()) for name in opened.keys()}
    except (SafetensorError, OSError) as error:
        raise DispError(f"{file} is no readable safetensors file ({error}); download it again") from None
