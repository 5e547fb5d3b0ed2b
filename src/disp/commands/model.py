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
        seed=seed,
    )
    dataset = rows.load(data)
    with progress_bar("training", steps) as advance:
        run(runtime.load(model), dataset.samples, config, out, progress=advance)
    print(f"model in {out}")
