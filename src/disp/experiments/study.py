"""Running an experiment: cell by cell, each in its folder, and what they show together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from disp.experiments.attacked import AttackRun
from disp.experiments.cells import by_attack, cells_of
from disp.experiments.defended import run_defence
from disp.experiments.plots import draw
from disp.experiments.recipe import Defence, Experiment
from disp.experiments.results import collect, is_finished
from disp.experiments.shown import run_overview, run_trigger
from disp.experiments.subject import Subject
from disp.experiments.sweep import run_sweep
from disp.experiments.tables import table_of
from disp.files import read_json, write_json, write_text
from disp.locks import locked
from disp.progress import ProgressBar, no_progress

RUNNERS: Mapping[str, Callable[[AttackRun, str, Defence, Experiment], None]] = {
    "defences": lambda run, name, defence, _: run_defence(run, name, defence),
    "mask-ratio": run_sweep,
    "triggers": lambda run, name, defence, _: run_trigger(run, name, defence),
    "overview": lambda run, name, defence, _: run_overview(run, name, defence),
}


def run_experiment(
    experiment: Experiment,
    subject: Subject,
    out: Path,
    *,
    only: str | None = None,
    command: str = "",
    progress: ProgressBar = no_progress,
) -> dict[str, Any]:
    """Run the cells of an experiment that are not finished, and write what all finished ones show.

    ``out`` receives ``attacks/``, a folder for each attack with its data, its backdoored model, its scores, its audit
    and its defences; ``scenes/``, the honest sets that attacks share; and ``NAME/`` with ``results.json``, ``table.md``
    and the figure as SVG and PNG. Experiments with one ``out`` share attacks. Several processes may run different
    attacks in one ``out``.

    Args:
        experiment: which one.
        subject: whom it is made with.
        out: folder of the runs.
        only: see `disp.experiments.cells.cells_of`.
        command: the command line, for the record.
        progress: opened with a description and a total for each long step; see `disp.progress`.

    Returns:
        What ``results.json`` holds.

    Raises:
        DispError: ``only`` fits nothing, a setting is wrong, or another process has the attack's folder.
    """
    grouped = by_attack(cells_of(experiment, only))
    for attack, names in grouped.items():
        audited = any(experiment.defences[name].needs_audit for name in names)
        run = AttackRun(subject, attack, out, progress, audited=audited)
        names = [name for name in names if not is_finished(run, name, experiment)]
        if not names:
            continue
        with locked(run.folder):
            run.begin()
            for name in names:
                RUNNERS[experiment.kind](run, name, experiment.defences[name], experiment)
        # After each attack, so that a stopped run has shown what it has.
        write_results(experiment, subject, out, command)
    results = write_results(experiment, subject, out, command)
    draw(results, out / experiment.name, out)
    return results


def write_results(experiment: Experiment, subject: Subject, out: Path, command: str) -> dict[str, Any]:
    """Write ``results.json`` and ``table.md`` of what is finished; where that is nothing new, the date stays."""
    results = collect(experiment, subject, out, command)
    folder = out / experiment.name
    if (folder / "results.json").exists():
        before = read_json(folder / "results.json")
        told = json.loads(json.dumps(results))
        if all(before.get(part) == told[part] for part in ("cells", "attacks", "recipe", "model")):
            results = {**results, **{part: before[part] for part in ("commands", "date", "versions", "hardware")}}
        elif all(before.get(part) == told[part] for part in ("recipe", "model")):
            results["commands"] = [*dict.fromkeys((*before["commands"], command))]
    write_json(folder / "results.json", results)
    write_text(folder / "table.md", table_of(results))
    return results
