"""Settings of fine-tuning, as the commands that take a recipe share them."""

from __future__ import annotations

import os
from typing import Any

from disp.errors import DispError


def training_settings(recipe: str | None, *, keep_adapter: bool = False, **given: Any) -> Any:
    """The recipe's `disp.training.config.TrainConfig`, or the default one, with what was given on the command line.

    ``given`` are fields of `TrainConfig`, None where an option was left out; ``keep_adapter`` is that of the commands.

    Raises:
        DispError: there is no such recipe, a value is out of range, or there is no adapter to be kept.
    """
    from disp.training.config import TrainConfig
    from disp.training.recipes import recipe as settings_of

    given["merge"] = not keep_adapter
    if recipe is None:
        config = TrainConfig(**{name: value for name, value in given.items() if value is not None})
    else:
        config = settings_of(recipe, devices=int(os.environ.get("WORLD_SIZE", "1")), **given)
    if keep_adapter and config.method != "lora":
        raise DispError("--keep-adapter needs --method lora; no other method has adapters")
    return config
