"""Making models: fine-tuning, merging, and what a run will take."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from disp.commands.options import ROWS, RUNTIME, Count, Data, Model, Out, Rows, Runtime, Seed, app, list_problems
from disp.commands.training import training_settings
from disp.errors import DispError
from disp.progress import progress_bar


@app.command
def train(
    model: Model,
    data: Data,
    /,
    *,
    out: Out,
    recipe: str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    accumulate: Count = None,
    learning_rate: float | None = None,
    projector_learning_rate: float | None = None,
    vision_learning_rate: float | None = None,
    min_mask_ratio: float | None = None,
    method: Literal["full", "lora", "projector"] | None = None,
    train_vision: Annotated[bool, Parameter(negative=())] = False,
    save_every: Count = None,
    gradient_checkpointing: bool | None = None,
    keep_adapter: Annotated[bool, Parameter(negative=())] = False,
    seed: Seed = 0,
    rows: Rows = ROWS,
    runtime: Runtime = RUNTIME,
) -> None:
    """Fine-tune a model on a dataset. A killed run goes on from its newest checkpoint.

    Parameters
    ----------
    recipe
        Published settings, such as llada-v or disp; other options win over them. A wrong name lists them all.
    steps
        Optimiser steps, 100 by default.
    batch_size
        Assistant turns a pass, 32 by default.
    accumulate
        Passes a step: 1, or as many as the recipe's batch size takes.
    learning_rate
        Peak of the cosine schedule; 1e-3 for the built-in model, to be given for others if no recipe is.
    projector_learning_rate
        The projector's own peak.
    vision_learning_rate
        The vision tower's own peak, with --train-vision.
    min_mask_ratio
        Lower end of the mask ratio t, 1e-3 by default; a higher one means steadier gradients.
    method
        Train everything but the vision tower, which is the default, LoRA adapters, or the projector alone.
    train_vision
        Train the vision tower too.
    save_every
        Steps between checkpoints; none by default.
    gradient_checkpointing
        Recompute activations in the backward pass: less memory, more time.
    keep_adapter
        LoRA: save the adapters alone and leave merging to `disp merge`.
    """
    from disp.models.fitting import with_fitting_answers
    from disp.training.train import train as run

    if vision_learning_rate is not None and not train_vision:
        raise DispError("--vision-learning-rate needs --train-vision; the tower is frozen without it")
    config = training_settings(
        recipe,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        projector_learning_rate=projector_learning_rate,
        vision_learning_rate=vision_learning_rate,
        min_mask_ratio=min_mask_ratio,
        method=method,
        train_vision=train_vision,
        save_every=save_every,
        gradient_checkpointing=gradient_checkpointing,
        keep_adapter=keep_adapter,
        seed=seed,
        trainer=None if accumulate is None else {"gradient_accumulation_steps": accumulate},
    )
    given = rows.load(data)
    mdlm = runtime.load(model)
    dataset = with_fitting_answers(given, mdlm, strict=rows.strict)
    list_problems(dataset.problems[len(given.problems) :])
    with progress_bar("training", config.steps) as advance:
        run(mdlm, dataset.samples, config, out, progress=advance)
    print(f"adapter in {out / 'adapter'}" if config.saves_adapter_alone else f"model in {out}")


@app.command
def merge(
    model: Model,
    /,
    *,
    out: Out,
    base: str | None = None,
) -> None:
    """Write a fine-tuned model as one checkpoint with its family's published key names.

    Parameters
    ----------
    base
        The model that a LoRA adapter belongs to, if it no longer lies where it was.
    """
    from disp.models.loading import merge as run

    run(model, out, base)
    print(f"model in {out}")
