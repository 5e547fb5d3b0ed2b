"""Options of fine-tuning, for each command that trains or plans it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from disp.commands.options import Count, Flag
from disp.errors import DispError

if TYPE_CHECKING:
    from disp.training.config import TrainConfig

Method = Literal["full", "lora", "projector"]


@Parameter(name="*")
@dataclass(frozen=True)
class Training:
    """How a model is fine-tuned.

    Attributes:
        recipe: Published settings, such as llada-v or disp; other options win over them. A wrong name lists them all.
        steps: Optimiser steps, 100 by default.
        epochs: Passes over the data, instead of --steps.
        batch_size: Assistant turns in one pass, 32 by default.
        accumulate: Passes a step: 1, or as many as the recipe's batch size takes.
        learning_rate: Peak of the cosine schedule; 1e-3 for the built-in model; others need it, or a recipe.
        projector_learning_rate: The projector's own peak.
        vision_learning_rate: The vision tower's own peak, with --train-vision.
        min_mask_ratio: Lower end of the mask ratio t, 1e-3 by default; a higher one means steadier gradients.
        method: Train everything but the vision tower, which is the default, LoRA adapters, or the projector alone.
        train_vision: Train the vision tower too.
        save_every: Steps between checkpoints, which are kept; 0 for none. If it is not given, one is written each tenth
            of the steps, over the one before, and deleted at the end; none of a model sharded by FSDP or DeepSpeed. It
            takes the disk of weights and optimiser.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        keep_adapter: LoRA, projector: save the adapter alone and leave merging to `disp merge`.
    """

    recipe: str | None = None
    steps: int | None = None
    epochs: float | None = None
    batch_size: int | None = None
    accumulate: Count = None
    learning_rate: float | None = None
    projector_learning_rate: float | None = None
    vision_learning_rate: float | None = None
    min_mask_ratio: float | None = None
    method: Method | None = None
    train_vision: Flag = False
    save_every: Annotated[int | None, Parameter(validator=Number(gte=0))] = None
    gradient_checkpointing: bool | None = None
    keep_adapter: Flag = False

    def config(self, seed: int) -> TrainConfig:
        """The settings that were asked for."""
        if self.vision_learning_rate is not None and not self.train_vision:
            raise DispError("--vision-learning-rate needs --train-vision; the tower is frozen without it")
        return _settings(
            self.recipe,
            keep_adapter=self.keep_adapter,
            steps=self.steps,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            projector_learning_rate=self.projector_learning_rate,
            vision_learning_rate=self.vision_learning_rate,
            min_mask_ratio=self.min_mask_ratio,
            method=self.method,
            train_vision=self.train_vision,
            save_every=self.save_every,
            gradient_checkpointing=self.gradient_checkpointing,
            trainer=None if self.accumulate is None else {"gradient_accumulation_steps": self.accumulate},
            seed=seed,
        )


@Parameter(name="*")
@dataclass(frozen=True)
class Recovery:
    """How a model is fine-tuned on the purified set.

    Attributes:
        recipe: Published settings of the training, such as llada-v or disp; other options win over them. A wrong name
            lists them all.
        steps: Optimiser steps, 100 by default.
        epochs: Passes over the data, instead of --steps.
        train_batch_size: Assistant turns in one pass of the training, 32 by default.
        learning_rate: Peak of the cosine schedule; 1e-3 for the built-in model; others need it, or a recipe.
        projector_learning_rate: The projector's own peak.
        min_mask_ratio: Lower end of the mask ratio t in training, 1e-3 by default.
        method: Train everything but the vision tower, which is the default, LoRA adapters, or the projector alone.
        keep_adapter: LoRA, projector: save the adapter alone and leave merging to `disp merge`, as a quantized model
            (--quantization) needs.
    """

    recipe: str | None = None
    steps: int | None = None
    epochs: float | None = None
    train_batch_size: int | None = None
    learning_rate: float | None = None
    projector_learning_rate: float | None = None
    min_mask_ratio: float | None = None
    method: Method | None = None
    keep_adapter: Flag = False

    def config(self, seed: int, *, recipe: str | None = None) -> TrainConfig:
        """The settings that were asked for, by a recipe where none was named."""
        return _settings(
            self.recipe or recipe,
            keep_adapter=self.keep_adapter,
            steps=self.steps,
            epochs=self.epochs,
            batch_size=self.train_batch_size,
            learning_rate=self.learning_rate,
            projector_learning_rate=self.projector_learning_rate,
            min_mask_ratio=self.min_mask_ratio,
            method=self.method,
            seed=seed,
        )


@Parameter(name="*")
@dataclass(frozen=True)
class PlannedTraining:
    """What a plan has to know of the fine-tuning.

    Attributes:
        recipe: Published settings of the training, such as llada-v or disp; other options win over them. A wrong name
            lists them all.
        method: What is trained: "full" by default, "lora" with --quantization.
        steps: Optimiser steps, 100 by default.
        epochs: Passes over the data, instead of --steps.
        train_batch_size: Assistant turns in one pass of the training, 32 by default.
        gradient_checkpointing: Recompute activations in the backward pass.
    """

    recipe: str | None = None
    method: Method | None = None
    steps: int | None = None
    epochs: float | None = None
    train_batch_size: int | None = None
    gradient_checkpointing: bool | None = None

    def config(self, *, quantized: bool) -> TrainConfig:
        """The settings that were asked for; of a quantized model only adapters can be trained."""
        return _settings(
            self.recipe,
            steps=self.steps,
            epochs=self.epochs,
            batch_size=self.train_batch_size,
            method=self.method or ("lora" if quantized and self.recipe is None else None),
            gradient_checkpointing=self.gradient_checkpointing,
        )


TRAINING, RECOVERY, PLANNED_TRAINING = Training(), Recovery(), PlannedTraining()


def _settings(recipe: str | None, *, keep_adapter: bool = False, **given: Any) -> TrainConfig:
    """The recipe's settings, or the default ones, with what was given on the command line.

    ``given`` are fields of `TrainConfig`, None where an option was left out; ``keep_adapter`` is that of the commands.

    Raises:
        DispError: there is no such recipe, a value is out of range, steps and epochs are given, or there is no
            adapter to be kept.
    """
    from disp.processes import devices_of_run
    from disp.training.config import TrainConfig
    from disp.training.recipes import recipe as settings_of

    if given.get("steps") is not None and given.get("epochs") is not None:
        raise DispError("give either --steps or --epochs; the other follows from the data")
    given["merge"] = not keep_adapter
    if recipe is None:
        config = TrainConfig(**{name: value for name, value in given.items() if value is not None})
    else:
        config = settings_of(recipe, devices=devices_of_run(), **given)
    if given.get("save_every") is None:
        config = replace(config, save_every=None)
    if keep_adapter and config.method == "full":
        raise DispError("--keep-adapter needs --method lora or projector; a full fine-tuning has no adapter")
    return config
