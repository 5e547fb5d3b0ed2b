"""Making models: fine-tuning and merging."""

from __future__ import annotations

from pathlib import Path

from disp.commands.options import ROWS, RUNTIME, Data, Model, Out, Rows, Runtime, Seed, app, list_problems
from disp.commands.training import TRAINING, Training
from disp.progress import progress_bar


@app.command
def train(
    model: Model,
    data: Data,
    /,
    *,
    out: Out,
    training: Training = TRAINING,
    seed: Seed = 0,
    rows: Rows = ROWS,
    runtime: Runtime = RUNTIME,
) -> None:
    """Fine-tune a model on a dataset. A killed run goes on from its newest checkpoint."""
    from disp.data.sample import queries_of
    from disp.models.fitting import with_fitting_answers
    from disp.processes import devices_of_run
    from disp.training.train import train as run

    config = training.config(seed)
    runtime.check(model)
    given = rows.load(data, pictured=True)
    mdlm = runtime.load(model)
    dataset = with_fitting_answers(given, mdlm, strict=rows.strict)
    list_problems(dataset.problems[len(given.problems) :])
    config = config.for_turns(len(queries_of(dataset.samples)), devices_of_run())
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
    projector: Path | None = None,
) -> None:
    """Write a fine-tuned model as one checkpoint with its family's published key names.

    Parameters
    ----------
    base
        The model that an adapter belongs to, if it no longer lies where it was.
    projector
        File with a fine-tuned projector to put in: mm_projector.safetensors, or the mm_projector.bin or
        non_lora_trainables.bin of LLaVA's and LLaDA-V's scripts, of which nothing but tensors is read.
    """
    from disp.models.merging import merge as run

    run(model, out, base, projector)
    print(f"model in {out}")
