"""``results.json`` of an experiment: every finished cell, and where, when and with what it was measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from disp.experiments.attacked import AttackRun
from disp.experiments.cells import Cell, by_attack, cells_of
from disp.experiments.defended import defence_folder
from disp.experiments.machine import hardware, now, versions
from disp.experiments.phases import Phases
from disp.experiments.recipe import Experiment
from disp.experiments.subject import Subject
from disp.files import read_json
from disp.progress import no_progress

# Folder of a cell below its attack's, by the experiment's kind, and the file that says that it is finished.
RECORDS = {
    "defences": ("{name}", "cell.json"),
    "mask-ratio": ("sweep-{rows}-{name}", "cell.json"),
    "triggers": ("picture-{name}", "cell.json"),
    "overview": ("{name}", "overview.json"),
}


def record_of(run: AttackRun, name: str, experiment: Experiment) -> Path:
    """The file that a finished cell of an attack has."""
    folder, file = RECORDS[experiment.kind]
    called = folder.format(name=name, rows=experiment.sweep_rows)
    return defence_folder(run, called, experiment.defences[name]) / file


def is_finished(run: AttackRun, name: str, experiment: Experiment) -> bool:
    """Whether a cell is finished; a sweep is if it has the experiment's ratios."""
    file = record_of(run, name, experiment)
    if not file.exists():
        return False
    return experiment.kind != "mask-ratio" or read_json(file)["ratios"] == list(experiment.ratios)


def collect(experiment: Experiment, subject: Subject, out: Path, command: str) -> dict[str, Any]:
    """All cells of an experiment that are finished, as JSON-able values.

    Args:
        experiment: the experiment.
        subject: whom it is made with.
        out: folder of the runs.
        command: the command line, for the record.

    Returns:
        ``cells`` in the experiment's order, each with what was measured, seconds by phase and hashes; ``attacks`` with
        what defences share; ``missing``, names of the cells that are not finished; and what the results depend on.
    """
    attacks: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    missing: list[str] = []
    for attack, names in by_attack(cells_of(experiment)).items():
        run = AttackRun(subject, attack, out, no_progress)
        done = [name for name in names if is_finished(run, name, experiment)]
        missing += [Cell(attack, name).name for name in names if name not in done]
        if done:
            attacks.append({**asdict(attack), **_shared(run)})
        for name in done:
            file = record_of(run, name, experiment)
            where = file.parent.relative_to(out).as_posix()
            seconds = {phase: each["seconds"] for phase, each in Phases(file.parent).read().items()}
            cells.append(
                {**asdict(attack), "defence": name, "folder": where, "seconds": seconds, "found": read_json(file)}
            )
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "kind": experiment.kind,
        "claims": list(experiment.claims),
        "defences": {name: each.title for name, each in experiment.defences.items()},
        "commands": [command],
        "date": now(),
        "model": subject.identity(),
        "versions": versions(),
        "hardware": hardware(),
        "recipe": asdict(experiment),
        "attacks": attacks,
        "cells": cells,
        "missing": missing,
    }


def _shared(run: AttackRun) -> dict[str, Any]:
    """What all defences against an attack share: measurements before them, hashes, seconds by phase."""
    shared: dict[str, Any] = {
        "folder": run.folder.relative_to(run.out).as_posix(),
        "seconds": {phase: each["seconds"] for phase, each in run.phases.read().items()},
    }
    manifest = read_json(run.manifest)
    shared["poisoned"], shared["rows"] = manifest["poisoned"], manifest["rows"]
    shared["data_sha256"] = manifest["data_sha256"]
    for stage in ("clean", "backdoored"):
        file = run.folder / "stages" / f"{stage}.json"
        shared[stage] = read_json(file) if file.exists() else None
    audited = run.folder / "audit" / "audit.json"
    if audited.exists():
        found = read_json(audited)
        ratio = found["mask_ratio"]
        shared["audit"] = {
            "verdict": found["verdict"],
            "flagged": found["flagged"],
            "mask_ratio": ratio and ratio["ratio"],
        }
    return shared
