"""Sizes of published LaViDa checkpoints, from their config: LLaDA-V's tiles, each of which is pooled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from disp.errors import DispError
from disp.models.lavida.config import LavidaConfig
from disp.models.lavida.loading import embedding_rows
from disp.models.lavida.model import Lavida, pooled_side
from disp.models.parts.llava import read_vision_config, tiled_count
from disp.models.sizes import Sizes, language_sizes, tower_sizes, without_storage

TITLES = {"llada": "LaViDa on LLaDA", "dream": "LaViDa on Dream"}


def read_sizes(config: Mapping[str, Any], folder: Path | None = None) -> Sizes:
    """Sizes of the model that a config.json describes; see `disp.models.family.Family.sizes`."""
    read = LavidaConfig.from_official(config, read_vision_config(folder))
    read.vocab_size = _stored_rows(read, folder) or read.vocab_size
    tower = tower_sizes(read.vision)
    side = pooled_side(read.vision["image_size"] // read.vision["patch_size"], read.pooling)
    return Sizes(
        family=TITLES[read.variant],
        model=without_storage(lambda: Lavida(read)),
        language=language_sizes(read),
        tower=tower,
        projected=tower.patches,  # pooling comes after the projector
        visual_count=tiled_count(read, side),
        loss_rows=2,  # two complementary masks
    )


def _stored_rows(config: LavidaConfig, folder: Path | None) -> int | None:
    """Rows of the stored embedding; None where the weights are not there, which a plan does without."""
    if folder is None:
        return None
    try:
        return embedding_rows(folder, config.variant)
    except DispError:
        return None
