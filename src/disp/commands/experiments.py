"""The tables and figures of the paper."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from disp.commands.options import RUNTIME, Count, Flag, Out, Runtime, app
from disp.errors import DispError
from disp.progress import clock, progress_bar

Recipe = Annotated[str, Parameter(help="Published settings of a fine-tuning, such as llada-v; a wrong name lists all.")]


@app.command
def experiment(
    name: str,
    /,
    *,
    model: str = "builtin",
    seeds: Count = None,
    out: Out = Path("runs/experiments"),
    only: str | None = None,
    dry_run: Flag = False,
    show: Flag = False,
    data: Path | None = None,
    test: Path | None = None,
    implant: Recipe = "disp-implant",
    recovery: Recipe = "disp",
    runtime: Runtime = RUNTIME,
) -> None:
    """Make a table or figure of the paper anew: plant backdoors, defend, measure.

    Parameters
    ----------
    name
        main, mask-ratio, poison-ratio, ablation, triggers or overview; or a YAML file of your own.
    model
        "builtin", on scenes of its own, or a model of any family with --data and --test.
    seeds
        How many seeds, from 0 on; those of the experiment if not given.
    only
        The cells with these values, such as target=refusal,trigger=patch,seed=0,defence=published; "+" joins several
        values of a key, and the fifth key is rate.
    dry_run
        List the cells with the time that each will take, and run nothing.
    show
        Print the experiment's YAML, to start one of your own from.
    data
        Honest rows to poison and fine-tune on, for a model of your own.
    test
        Held-out rows with the right answers, for a model of your own.
    implant
        The recipe that plants backdoors in a model of your own; the experiment's own settings win over it.
    recovery
        The recipe that such a model recovers with.
    """
    from disp.experiments.recipe import load_experiment, recipe_file
    from disp.experiments.yaml_files import read_file

    if show:
        print(read_file(recipe_file(name)), end="")
        return
    if runtime.projector is not None:
        # It would take the place of every projector that is fine-tuned here.
        raise DispError("--projector is no option of an experiment; write it into a checkpoint first (disp merge)")
    found = load_experiment(name)
    if seeds is not None:
        found = found.with_seeds(seeds)
    from disp.experiments.cells import cells_of

    if data is not None:
        found = found.with_given_data()
    cells = cells_of(found, only)
    from disp.data.loading import load_dataset
    from disp.experiments.study import run_experiment
    from disp.experiments.subject import subject_of

    subject = subject_of(
        found,
        model,
        runtime.load,
        tuning=None if data is None else load_dataset(data),
        test=None if test is None else load_dataset(test),
        implant=implant,
        recovery=recovery,
    )
    if dry_run:
        from disp.experiments.estimate import estimates

        total, unknown = 0.0, False
        for each in estimates(found, subject, cells, out):
            told = "finished" if each.finished else "?" if each.seconds is None else clock(each.seconds)
            total, unknown = total + (each.seconds or 0.0), unknown or each.seconds is None
            print(f"{told:>9}  {each.cell.name}")
        left = "not known before one cell is finished (`disp plan` counts passes)" if unknown else clock(total)
        print(f"{_cells(len(cells))}; time left: {left}")
        if not unknown and total:
            print(f"measured below {out}; what was never done there is reckoned for one thread of a CPU with bfloat16")
        return
    if data is None:
        from disp.data.scenes import attribution

        print(attribution(), file=sys.stderr)
    own = model != "builtin" or data is not None
    asked: dict[str, str | int | None] = {"--model": model if own else None, "--seeds": seeds, "--only": only}
    if data is not None and test is not None:
        asked |= {"--data": data.name, "--test": test.name, "--implant": implant, "--recovery": recovery}
    options = [f"{option} {value}" for option, value in asked.items() if value is not None]
    command = " ".join(["disp experiment", Path(name).name if name.endswith(".yaml") else name, *options])
    results = run_experiment(found, subject, out, only=only, command=command, progress=progress_bar)
    folder = out / found.name
    print((folder / "table.md").read_text(encoding="utf-8"))
    measured, missing = len(results["cells"]), len(results["missing"])
    print(f"{_cells(measured)} measured, {missing} missing: {folder / 'results.json'}")


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"
