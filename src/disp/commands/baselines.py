"""Rival defences, to compare with."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from disp.commands.answering import SAMPLING, Sampling
from disp.commands.defences import PARAMETERS, Parameters
from disp.commands.options import ROWS, RUNTIME, Data, Model, Out, Rows, Runtime, Seed, app
from disp.progress import progress_bar


@app.command
def baseline(
    name: str,
    model: Model,
    data: Data,
    /,
    *,
    out: Out,
    parameters: Parameters = PARAMETERS,
    sampling: Sampling = SAMPLING,
    truth: Path | None = None,
    batch_size: int = 32,
    seed: Seed = 0,
    rows: Rows = ROWS,
    runtime: Runtime = RUNTIME,
) -> None:
    """Run a rival defence on a fine-tuning set: the rows that it leaves, or new answers. docs/baselines.md lists them.

    Parameters
    ----------
    name
        Such as bye, spectral, gtm or random-mask; a wrong name lists them all.
    model
        The model that was fine-tuned on the data; for likelihood the trusted one from before.
    truth
        The manifest.json of a planted attack, to measure a filter; it decides nothing.
    """
    from disp.baselines.run import run_baseline
    from disp.decoding.samplers import own_settings

    config = parameters.config(name, batch_size=batch_size, seed=seed)
    runtime.check(model)
    dataset = rows.load(data)  # first: a wrong path is said before weights are loaded
    mdlm = runtime.load(model)
    if sampling != SAMPLING:
        config = replace(config, decode=own_settings(mdlm, **asdict(sampling)))
    found = run_baseline(mdlm, dataset, config, out, truth=truth, progress=progress_bar)
    if found.scores:
        print(f"{len(found.dropped)} of {len(dataset.samples)} rows dropped: {found.note}")
    else:
        print(f"{len(found.rewritten)} of {len(dataset.samples)} rows answered anew")
    if found.truth:
        print(", ".join(f"{what} {'not defined' if value is None else value}" for what, value in found.truth.items()))
    print(f"The set to train on: {found.dataset.path}")
