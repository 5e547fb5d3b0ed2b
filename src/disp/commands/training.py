"""Settings of fine-tuning, as the commands that take a recipe share them."""

from __future__ import annotations

import os
from typing import Any


def training_settings(recipe: str | None, **given: Any) -> Any:
    """The recipe's `disp.training.TrainConfig`, or the default one, with what was given on the command line.

    ``given`` are fields of `TrainConfig`, None where an option was left out.

    Raises:
        DispError: there is no such recipe, or a value is out of range.
    """
    from disp.recipes import recipe as settings_of
    from disp.training import TrainConfig

    if recipe is None:
        return TrainConfig(**{name: value for name, value in given.items() if value is not None})
    return settings_of(recipe, devices=int(os.environ.get("WORLD_SIZE", "1")), **given)
