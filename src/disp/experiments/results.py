"""``results.json`` of an experiment: every finished cell, and where, when and with what it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from disp.errors import DispError
from disp.experiments.attacked import AttackRun
from disp.experiments.cells import Attacked, Cell, by_attack, cells_of
from disp.experiments.defended import defence_folder
from disp.experiments.phases import Phases
from disp.experiments.recipe import Experiment
from disp.experiments.subject import Subject
from disp.files import read_json
from disp.machine import hardware, now, versions
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


def merged(before: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Two results of one experiment as one, such as those of two machines; each cell says where it was measured.

    Args:
        before: what one ``results.json`` holds.
        found: what another one holds; what both have is taken from it.

    Raises:
        DispError: they have other settings or another model, or ``before`` has further cells of an attack that
            ``found`` has too: cells of one attack belong to one backdoored model.
    """
    for part in ("experiment", "recipe", "model"):
        if before[part] != found[part]:
            raise DispError(f"results of {before['experiment']!r} with another {part} are not put together")
    cells = {_place(found, each): each for each in found["cells"]}
    attacks = {_place(found, each): each for each in found["attacks"]}
    for each in before["cells"]:
        place = _place(found, each)
        if place not in cells and (*place[:-1], 0) in attacks:
            raise DispError(
                f"{_named(each)} is only in the earlier results; measure it anew with the rest of its attack"
            )
    attacks = {_place(found, each): each for each in before["attacks"]} | attacks
    cells = {_place(found, each): each for each in before["cells"]} | cells
    measured = {_named(each) for each in cells.values()}
    return {
        **found,
        "commands": [*dict.fromkeys((*before["commands"], *found["commands"]))],
        "attacks": [attacks[place] for place in sorted(attacks)],
        "cells": [cells[place] for place in sorted(cells)],
        "missing": [name for name in found["missing"] if name not in measured],
    }


def _place(results: Mapping[str, Any], each: Mapping[str, Any]) -> tuple[int, ...]:
    """Where a cell or an attack stands in the order of its experiment."""
    recipe = results["recipe"]
    parts = {"targets": "target", "triggers": "trigger", "poison_rates": "rate", "seeds": "seed"}
    place = [recipe[several].index(each[one]) for several, one in parts.items()]
    return (*place, list(recipe["defences"]).index(each["defence"]) if "defence" in each else 0)


def _named(cell: Mapping[str, Any]) -> str:
    return Cell(Attacked(*(cell[part] for part in ("target", "trigger", "rate", "seed"))), cell["defence"]).name


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
