"""Published fine-tuning settings as presets for `disp.training.config.TrainConfig`.

Each family brings its own (`disp.models.family.Family.recipes`). What their notes name is different here: the vision
tower is frozen unless asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disp.errors import unknown_name
from disp.models.families import all_families
from disp.models.family import LLAVA_TRAINING, Recipe
from disp.training.config import TrainConfig

# The scripts of DiSP's authors (arXiv 2602.22246): the projector alone, eight devices with four batches of one row.
_DISP = {**LLAVA_TRAINING, "method": "projector", "learning_rate": 1e-4, "rows_a_step": 32}
# The recipes of no family.
_COMMON = {
    "disp": Recipe({**_DISP, "epochs": 4}, "projector", "recovery as DiSP's authors do it"),
    "disp-implant": Recipe({**_DISP, "epochs": 20}, "projector", "how DiSP's authors plant their backdoors"),
}


def recipes() -> dict[str, Recipe]:
    """All recipes by name: those of no family, then each family's own."""
    return _COMMON | {name: each for family in all_families() for name, each in family.recipes.items()}


def recipe(name: str, *, devices: int = 1, **given: Any) -> TrainConfig:
    """Training settings of a recipe.

    Args:
        name: a key of `recipes`.
        devices: devices that share a step.
        given: fields of `TrainConfig`, which win over the recipe's; those that are None do not. With another
            ``batch_size`` more or fewer batches are accumulated, so that a step stays as large as published, unless
            ``trainer`` says how many.

    Raises:
        DispError: there is no such recipe, or a value is out of range.
    """
    known = recipes()
    if name not in known:
        raise unknown_name("recipe", name, known)
    published = known[name].settings
    given = {field: value for field, value in given.items() if value is not None}
    settings = {**published, **given}
    if "steps" in given:
        settings.pop("epochs", None)
    rows = settings.pop("rows_a_step", None)
    if "warmup_steps" in given:
        settings.pop("warmup_share", None)
    trainer: Mapping[str, Any] = {**published.get("trainer", {}), **given.get("trainer", {})}
    if rows is not None and settings["batch_size"] > 0:
        trainer = {"gradient_accumulation_steps": max(1, round(rows / (settings["batch_size"] * devices))), **trainer}
    config = TrainConfig(**{**settings, "trainer": trainer})
    # Without epochs the steps are known already.
    return config.for_turns(0) if config.epochs is None else config
