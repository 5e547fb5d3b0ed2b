"""Sizes of published LLaDA-V checkpoints, from their config: tiles of any resolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from disp.models.llada_v.config import LladaVConfig
from disp.models.llada_v.loading import read_vision_config
from disp.models.llada_v.model import LladaV
from disp.models.parts.anyres import grid_of, map_layout
from disp.models.sizes import Size, Sizes, VisualCount, language_sizes, tower_sizes, without_storage


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


def tiled_count(config: LladaVConfig, side: int) -> Callable[[Sequence[Size]], VisualCount]:
    """What images cost in one sample: an only one is tiled, several are one tile each.

    Args:
        config: the checkpoint's.
        side: tokens on each side of a tile.
    """
    candidates, tile = config.candidates, config.vision["image_size"]

    def count(images: Sequence[Size]) -> VisualCount:
        if len(images) != 1:  # each padded to one tile, with one newline
            return VisualCount(side * side * len(images), len(images), len(images))
        grid = grid_of(images[0], candidates, tile)
        layout = map_layout(images[0], grid, side, config.max_ratio_sq)
        # The base tile, then the map of the others with a newline after each row.
        return VisualCount(side * side + layout.rows * layout.columns, layout.rows, 1 + grid[0] * grid[1])

    return count
