"""What a run will take, and tasks for public benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from disp.commands.options import ROWS, Data, Model, Out, Rows, Seed, app
from disp.commands.training import training_settings
from disp.progress import progress_bar

BITS: dict[str | None, Literal[4, 8] | None] = {None: None, "4bit": 4, "8bit": 8}


@app.command
def plan(
    model: Model,
    data: Data,
    /,
    *,
    mode: Literal["selective", "all", "random"] = "selective",
    mask_ratio: float = 0.06,
    candidates: int = 4,
    probes: int = 4,
    batch_size: int = 32,
    recipe: str | None = None,
    method: Literal["full", "lora", "projector"] | None = None,
    steps: int | None = None,
    train_batch_size: int | None = None,
    gradient_checkpointing: bool | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    quantization: Literal["4bit", "8bit"] | None = None,
    gen_length: int | None = None,
    attack: Annotated[bool, Parameter(negative=())] = False,
    rows: Rows = ROWS,
) -> None:
    """Memory and passes that audit, purification, training and evaluation will take; loads no weights.

    Parameters
    ----------
    mode
        Which answers are rewritten.
    mask_ratio
        Share of the visual tokens that are masked.
    candidates
        Salient tokens that are masked one at a time.
    probes
        Hutchinson probes.
    batch_size
        Assistant turns a pass.
    recipe
        Published settings of the training, such as llada-v or disp; other options win over them. A wrong name lists
        them all.
    method
        What is trained: "full" by default.
    steps
        Optimiser steps, 100 by default.
    train_batch_size
        Assistant turns a pass of the training, 32 by default.
    gradient_checkpointing
        Recompute activations in the backward pass.
    dtype
        Of weights and activations.
    quantization
        Of the language model's weights, as with the other commands.
    gen_length
        Response slots; the model's own if not given.
    attack
        Whether the evaluation measures an attack too.
    """
    from disp.planning.plan import PlanSettings, make_plan
    from disp.purification.config import PurifyConfig
    from disp.suspicion.saliency import SaliencyConfig

    purify = PurifyConfig(
        mode=mode,
        mask_ratio=mask_ratio,
        candidates=candidates,
        saliency=SaliencyConfig(probes=probes),
        batch_size=batch_size,
    )
    train = training_settings(
        recipe,
        steps=steps,
        batch_size=train_batch_size,
        method=method,
        gradient_checkpointing=gradient_checkpointing,
    )
    settings = PlanSettings(
        dtype=dtype,
        bits=BITS[quantization],
        purify=purify,
        train=train,
        evaluation_batch_size=batch_size,
        attacked=attack,
        gen_length=gen_length,
    )
    print(make_plan(model, rows.load(data, pictures=False), settings).to_text())


@app.command
def tasks(data: Data, /, *, out: Out, attack: Path | None = None, seed: Seed = 0, rows: Rows = ROWS) -> None:
    """Write a held-out dataset as tasks for lmms-eval; see docs/benchmarks.md.

    Parameters
    ----------
    attack
        The manifest.json that `disp poison` wrote, for the two tasks that measure the ASR.
    """
    from disp.attacks.poison import load_attack
    from disp.benchmarks.export import write_tasks

    dataset = rows.load(data)
    with progress_bar("writing", len(dataset.samples)) as advance:
        names = write_tasks(dataset, out, attack=load_attack(attack) if attack else None, seed=seed, progress=advance)
    print(f"--include_path {out} --tasks {','.join(names)}")
