"""Sizes of published Dimple checkpoints, from their config: pictures keep their own size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from disp.models.dimple.config import DimpleConfig, read_config
from disp.models.dimple.images import token_grid
from disp.models.dimple.model import Dimple
from disp.models.sizes import Size, Sizes, TowerSizes, VisualCount, language_sizes, without_storage


def read_sizes(config: Mapping[str, Any], folder: Path | None = None) -> Sizes:
    """Sizes of the model that a config.json describes; see `disp.models.family.Family.sizes`."""
    read = DimpleConfig.from_official(config) if folder is None else read_config(folder)
    vision, pixels = read.vision, read.processing["max_pixels"]

    def count(images: Sequence[Size]) -> VisualCount:
        grids = [token_grid(size, vision, read.processing) for size in images]
        # A start and an end around each image.
        return VisualCount(sum(rows * columns for rows, columns in grids), 2 * len(images), len(images))

    patches = pixels // vision["patch_size"] ** 2
    return Sizes(
        family="Dimple",
        model=without_storage(lambda: Dimple(read)),
        language=language_sizes(read),
        tower=TowerSizes(
            width=vision["hidden_size"],
            hidden=vision["intermediate_size"],
            patches=patches,
            # Pixels as they are read and as they are normalised.
            stem=2 * 3 * vision["temporal_patch_size"] * pixels,
        ),
        projected=patches // vision["spatial_merge_size"] ** 2,
        visual_count=count,
    )
