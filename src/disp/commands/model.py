"""Making models: fine-tuning, merging, and what a run will take."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from disp.commands.options import ROWS, RUNTIME, Data, Model, Out, Rows, Runtime, Seed, app
from disp.progress import progress_bar


@app.command
def train(
    model: Model,
    data: Data,
    /,
    *,
    out: Out,
    steps: int = 100,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    min_mask_ratio: float = 1e-3,
    method: Literal["full", "lora", "projector"] = "full",
    train_vision: Annotated[bool, Parameter(negative=())] = False,
    save_every: int = 0,
    gen_length: int | None = None,
    gradient_checkpointing: Annotated[bool, Parameter(negative=())] = False,
    keep_adapter: Annotated[bool, Parameter(negative=())] = False,
    seed: Seed = 0,
    rows: Rows = ROWS,
    runtime: Runtime = RUNTIME,
) -> None:
    """Fine-tune a model on a dataset. A killed run goes on from its newest checkpoint.

    Parameters
    ----------
    steps
        Optimiser steps.
    batch_size
        Assistant turns a step.
    learning_rate
        Peak of the cosine schedule.
    min_mask_ratio
        Lower end of the mask ratio t; a higher one means steadier gradients.
    method
        Train everything but the vision tower, LoRA adapters, or the projector alone.
    train_vision
        Train the vision tower too.
    save_every
        Steps between checkpoints; 0 for none.
    gen_length
        Response slots; the model's own if not given.
    gradient_checkpointing
        Recompute activations in the backward pass: less memory, more time.
    keep_adapter
        LoRA: save the adapters alone and leave merging to `disp merge`.
    """
    from disp.training import TrainConfig
    from disp.training import train as run

    config = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        min_mask_ratio=min_mask_ratio,
        method=method,
        train_vision=train_vision,
        save_every=save_every,
        gradient_checkpointing=gradient_checkpointing,
        merge=not keep_adapter,
        seed=seed,
    )
    dataset = rows.load(data)
    with progress_bar("training", steps) as advance:
        run(runtime.load(model, gen_length=gen_length), dataset.samples, config, out, progress=advance)
    print(f"model in {out}")


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
