"""How long the cells of an experiment will take, from what finished ones took on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from disp.experiments.attacked import AttackRun
from disp.experiments.cells import Cell, by_attack
from disp.experiments.phases import Phases, rates
from disp.experiments.recipe import Defence, Experiment
from disp.experiments.results import is_finished
from disp.experiments.subject import Builtin, Subject
from disp.progress import no_progress
from disp.purification.config import PurifyConfig
from disp.suspicion.config import PROBES

# Seconds a unit of the built-in model on one thread of a CPU with bfloat16: a poisoned row, a step of 32 rows, a probe
# of one answer, an audited row, a rewritten answer, an answer of the measurement. Only where no cell is finished on
# this machine.
SECONDS = {
    "poison": 0.002,
    "implant": 0.7,
    "recover": 0.7,
    "score": 0.01,
    "score with suspicion": 0.018,
    "audit": 0.1,
    "rewrite": 0.021,
    "measure": 0.031,
}


@dataclass(frozen=True)
class Estimate:
    """A cell and its time.

    Attributes:
        cell: the cell.
        finished: whether there is nothing left to do.
        seconds: how long it will take; None where nothing is known of this model.
    """

    cell: Cell
    finished: bool
    seconds: float | None


def estimates(experiment: Experiment, subject: Subject, cells: Sequence[Cell], out: Path) -> list[Estimate]:
    """The time of each cell; what cells of one attack share is counted with the first of them that needs it.

    Args:
        experiment: the experiment.
        subject: whom it is made with.
        cells: which ones.
        out: folder of the runs, in which finished cells are looked for.
    """
    known = measured_rates(out)
    if isinstance(subject, Builtin):
        known = SECONDS | known
    found = []
    for attack, names in by_attack(cells).items():
        audited = any(experiment.defences[name].needs_audit for name in names)
        run = AttackRun(subject, attack, out, no_progress, audited=audited)
        done = _done(run)
        rows, test_rows = subject.rows(attack)
        for name in names:
            if is_finished(run, name, experiment):
                found.append(Estimate(Cell(attack, name), True, 0.0))
                continue
            work = _work(experiment, experiment.defences[name], run, rows, test_rows)
            shared = {phase: units for phase, units in work.items() if phase in _SHARED}
            left = {phase: units for phase, units in work.items() if phase not in _SHARED or phase not in done}
            done |= set(shared)
            missing = [phase for phase in left if _phase(phase) not in known]
            seconds = None if missing else sum(units * known[_phase(phase)] for phase, units in left.items())
            found.append(Estimate(Cell(attack, name), False, seconds))
    return found


# What the defences against one attack share; the models before it are measured once.
_SHARED = ("poison", "implant", "measure before", "score with suspicion", "audit", "score own")


def _phase(name: str) -> str:
    return {"measure before": "measure", "score own": "score"}.get(name, name)


def _done(run: AttackRun) -> set[str]:
    """What of `_SHARED` an attack has behind it."""
    spent = set(run.phases.read())
    if all((run.folder / "stages" / f"{stage}.json").exists() for stage in ("clean", "backdoored")):
        spent.add("measure before")
    if spent & {"score", "score with suspicion"}:
        spent.add("score own")
    return spent


def _work(experiment: Experiment, defence: Defence, run: AttackRun, rows: int, test_rows: int) -> dict[str, float]:
    """Units of work by phase of one cell with all that it stands on."""
    settings = run.settings
    answers = 2 * test_rows
    work: dict[str, float] = {"poison": rows, "implant": settings.implant.for_turns(rows).steps}
    estimator = PurifyConfig.published().scoring.saliency if defence.preset else settings.purify.scoring.saliency
    probes = int(defence.saliency.get("probes", estimator.probes))
    if experiment.kind == "triggers":
        return work
    work["measure before"] = 2 * answers
    if experiment.kind == "mask-ratio":
        asked = min(2 * experiment.sweep_rows, rows)
        scored = 0 if defence.rewrite == "random" else asked * probes
        return {**work, "score": scored, "rewrite": asked * len(experiment.ratios)}
    # Where answers are scored for an audit, every defence with the same estimator takes its saliency from there.
    own = "score with suspicion" if run.audited else "score own"
    if defence.needs_audit:
        work |= {own: rows * settings.purify.scoring.saliency.probes, "audit": rows}
    if defence.rewrite in ("all", "random"):
        changed = defence.preset is not None or bool(defence.saliency)
        work |= {"score" if changed else own: rows * probes, "rewrite": rows}
    elif defence.rewrite == "flagged":
        work["rewrite"] = rows * run.attack.rate
    if defence.fine_tunes:
        work["recover"] = settings.recovery.for_turns(rows).steps
    work["measure"] = answers * (1 if defence.fine_tunes else 1 + PROBES["isotropic"] / 4)
    return work


def measured_rates(out: Path) -> dict[str, float]:
    """Seconds a unit by phase, from every run folder below ``out``."""
    return rates(Phases(file.parent).read() for file in sorted(out.glob("attacks/**/seconds.json")))
