"""Published fine-tuning settings as presets for `disp.training.config.TrainConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disp.errors import unknown_name
from disp.training.config import TrainConfig

# Fields of `TrainConfig`, and two that a run's length and number of devices turn into such: `warmup_share` of the
# steps, and `rows_a_step`, the published batch size over all devices.
_LLAVA = {"weight_decay": 0.0, "max_grad_norm": 1.0, "warmup_share": 0.03, "batch_size": 1}
_LAVIDA_SCHEDULE = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}

RECIPES: dict[str, dict[str, Any]] = {
    # The published DiSP trains and merges LLaDA-V's projector. Rate and batch size are LLaDA-V's own.
    "disp": {**_LLAVA, "method": "projector", "learning_rate": 1e-3, "rows_a_step": 64},
    # Stage 1, 16 rows a GPU; here as on eight.
    "llada-v-projector": {**_LLAVA, "method": "projector", "learning_rate": 1e-3, "rows_a_step": 128},
    # Fine-tuning, 32 GPUs with two batches of one row each. Their vision tower is trained too (--train-vision).
    "llada-v": {
        **_LLAVA, "method": "full", "learning_rate": 1e-5, "vision_learning_rate": 2e-6, "rows_a_step": 64,
        "gradient_checkpointing": True,
    },
    # Stage 1, eight GPUs.
    "lavida-projector": {**_LLAVA, "method": "projector", "learning_rate": 1e-3, "rows_a_step": 256},
    # Stages 2 and 3; each row is two in the loss. Their vision tower is trained too (--train-vision).
    "lavida": {
        **_LLAVA, "method": "full", "learning_rate": 2e-5, "vision_learning_rate": 2e-6, "rows_a_step": 128,
        "gradient_checkpointing": True,
        "trainer": _LAVIDA_SCHEDULE,
    },
    # Their warm-up is 5000 steps of a far longer run.
    "mmada": {
        "method": "full", "learning_rate": 5e-5, "weight_decay": 0.01, "max_grad_norm": 1.0, "warmup_share": 0.03,
        "batch_size": 1, "gradient_checkpointing": True,
    },
    # Alignment; theirs is autoregressive.
    "dimple-projector": {**_LLAVA, "method": "projector", "learning_rate": 1e-3},
    # The diffusion stage. Their projector is frozen in it.
    "dimple": {
        **_LLAVA, "method": "full", "learning_rate": 5e-6, "max_grad_norm": 0.01, "rows_a_step": 128,
        "gradient_checkpointing": True,
    },
}  # fmt: skip
"""Learning rates, batch sizes and clipping of the training scripts of LLaDA-V (arXiv 2505.16933), LaViDa (2505.16839),
MMaDA (2505.15809) and Dimple (2505.16990), and the method of DiSP (2602.22246). What a comment names is different
here: the vision tower is frozen unless asked for. DiffusionGemma's makers publish no rate."""


def recipe(name: str, *, devices: int = 1, **given: Any) -> TrainConfig:
    """Training settings of a recipe.

    Args:
        name: a key of `RECIPES`.
        devices: devices that share a step.
        given: fields of `TrainConfig`, which win over the recipe's; those that are None do not. With another
            ``batch_size`` more or fewer batches are accumulated, so that a step stays as large as published, unless
            ``trainer`` says how many.

    Raises:
        DispError: there is no such recipe, or a value is out of range.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    given = {field: value for field, value in given.items() if value is not None}
    settings = {"steps": TrainConfig.steps, **RECIPES[name], **given}
    share, rows = settings.pop("warmup_share"), settings.pop("rows_a_step", None)
    if "warmup_steps" not in given:
        settings["warmup_steps"] = round(share * settings["steps"])
    trainer: Mapping[str, Any] = {**RECIPES[name].get("trainer", {}), **given.get("trainer", {})}
    if rows is not None and settings["batch_size"] > 0:
        trainer = {"gradient_accumulation_steps": max(1, round(rows / (settings["batch_size"] * devices))), **trainer}
    return TrainConfig(**{**settings, "trainer": trainer})
