"""Sizes of published LLaDA-V checkpoints, from their config: tiles of any resolution."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from disp.models.llada_v.config import LladaVConfig
from disp.models.llada_v.model import LladaV
from disp.models.parts.llava import read_vision_config, tiled_count
from disp.models.sizes import Sizes, language_sizes, tower_sizes, without_storage


def read_sizes(config: Mapping[str, Any], folder: Path | None = None) -> Sizes:
    """Sizes of the model that a config.json describes; see `disp.models.family.Family.sizes`."""
    read = LladaVConfig.from_official(config, read_vision_config(folder))
    tower = tower_sizes(read.vision)
    return Sizes(
        family="LLaDA-V",
        model=without_storage(lambda: LladaV(read)),
        language=language_sizes(read),
        tower=tower,
        projected=tower.patches,
        visual_count=tiled_count(read, read.vision["image_size"] // read.vision["patch_size"]),
    )
