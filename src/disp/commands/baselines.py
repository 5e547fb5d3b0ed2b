"""Rival defences, to compare with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from disp.commands.answering import SAMPLING, Sampling
from disp.commands.options import ROWS, RUNTIME, Data, Model, Out, Rows, Runtime, Seed, app
from disp.errors import DispError
from disp.progress import progress_bar

if TYPE_CHECKING:
    from disp.baselines.config import BaselineConfig


@Parameter(name="*")
@dataclass(frozen=True)
class Rival:
    """How a rival defence is run.

    Attributes:
        parameters: A parameter of the defence, as NAME=VALUE, such as --set ratio=0.45; may be given several times.
        batch_size: Assistant turns a pass.
    """

    parameters: Annotated[tuple[str, ...], Parameter(name="--set", negative=())] = ()
    batch_size: int = 32

    def config(self, name: str, seed: int) -> BaselineConfig:
        """The settings that were asked for."""
        from disp.baselines.config import BaselineConfig, parameters_of
        from disp.baselines.table import DEFENCES

        given = {}
        for text in self.parameters:
            parameter, equals, value = text.partition("=")
            if not equals:
                raise DispError(f"--set takes NAME=VALUE, such as --set ratio=0.45; got {text!r}")
            given[parameter] = value
        plain = BaselineConfig(name, batch_size=self.batch_size, seed=seed)  # refuses a wrong name
        return replace(plain, parameters=parameters_of(DEFENCES[name], given))


RIVAL = Rival()


@app.command
def baseline(
    name: str,
    model: Model,
    data: Data,
    /,
    *,
    out: Out,
    rival: Rival = RIVAL,
    sampling: Sampling = SAMPLING,
    truth: Path | None = None,
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

    config = rival.config(name, seed)
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
