"""Rival defences, to compare with."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from disp.commands.answering import SAMPLING, Sampling
from disp.commands.defences import PARAMETERS, Parameters
from disp.commands.options import ROWS, RUNTIME, BatchSize, Data, Model, Out, Rows, Runtime, Seed, app
from disp.commands.sharing import SHARING, Sharing, bar_of


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
    batch_size: BatchSize = 32,
    sharing: Sharing = SHARING,
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

    parameters.config(name, batch_size=1, seed=seed)  # refuses wrong values
    runtime.check(model)
    workers, runtime = sharing.workers(model, runtime), sharing.runtime(runtime)
    dataset = rows.load(data, quiet=not workers.leads)  # first: a wrong path is said before weights are loaded
    size = sharing.batch_size(batch_size, model, dataset.samples, runtime, workers, work="scores", folder=out)
    config, mdlm = parameters.config(name, batch_size=size, seed=seed), runtime.load(model)
    if sampling != SAMPLING:
        config = replace(config, decode=own_settings(mdlm, **asdict(sampling)))
    found = run_baseline(mdlm, dataset, config, out, truth=truth, workers=workers, progress=bar_of(workers))
    if not workers.leads:  # the rest is the first process's to tell
        return
    if found.scores:
        print(f"{len(found.dropped)} of {len(dataset.samples)} rows dropped: {found.note}")
    else:
        print(f"{len(found.rewritten)} of {len(dataset.samples)} rows answered anew")
    if found.truth:
        print(", ".join(f"{what} {'not defined' if value is None else value}" for what, value in found.truth.items()))
    print(f"The set to train on: {found.dataset.path}")
