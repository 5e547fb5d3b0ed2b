"""Sizes of the built-in model, and of others in its arrangement, from their config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from disp.models.builtin.model import BuiltinConfig, BuiltinModel
from disp.models.sizes import Size, Sizes, VisualCount, language_sizes, tower_sizes, without_storage


def read_sizes(config: Mapping[str, Any], folder: Path | None = None) -> Sizes:
    """Sizes of the model that a config.json describes; see `disp.models.family.Family.sizes`."""
    tower = tower_sizes(config["vision"])
    read = BuiltinConfig.from_dict(dict(config))

    def count(images: Sequence[Size]) -> VisualCount:
        return VisualCount(tower.patches * len(images), 0, len(images))

    return Sizes(
        family="LLaDA-V arrangement",
        model=without_storage(lambda: BuiltinModel(read)),
        language=language_sizes(read),
        tower=tower,
        projected=tower.patches,
        visual_count=count,
    )
