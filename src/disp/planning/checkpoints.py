"""What the files of a checkpoint say without its weights being read: configs, headers, an adapter's base."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from disp.errors import DispError


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """``config.json`` of a folder and, if there is one, ``vision_config.json``.

    What ``preprocessor_config.json`` says of picture sizes is added to the config, under ``"preprocessor"``.

    Raises:
        DispError: there is no config.json, or it is not JSON.
    """
    found = []
    for name in ("config.json", "vision_config.json", "preprocessor_config.json"):
        try:
            found.append(json.loads((folder / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            found.append(None)
        except (OSError, ValueError) as error:
            raise DispError(f"{folder / name} cannot be read ({error})") from None
    if not isinstance(found[0], dict):
        raise DispError(f"{folder} has no config.json; give the folder of a checkpoint")
    return {**found[0], "preprocessor": found[2] or {}}, found[1]


def stored_parameters(folder: Path) -> dict[str, int] | None:
    """Values of each tensor in a folder's safetensors files, by name, from the files' headers alone.

    Returns:
        None where the weights are not there.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    names += [name for name in ("vq.safetensors",) if (folder / name).is_file()]
    counts: dict[str, int] = {}
    for name in names:
        if not (folder / name).is_file():
            return None
        with (folder / name).open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for tensor, about in header.items():
            if tensor != "__metadata__":
                counts[tensor] = math.prod(about["shape"])
    return counts


def adapter_base(folder: Path) -> str | None:
    """What a PEFT adapter in a folder was trained on; None where the folder holds no adapter."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return None
    return json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
