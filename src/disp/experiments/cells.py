"""The cells of an experiment: one attack and one defence each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from disp.errors import DispError, unknown_name
from disp.experiments.recipe import Experiment


@dataclass(frozen=True)
class Attacked:
    """One attack.

    Attributes:
        target: a preset of `disp.attacks.targets`.
        trigger: a preset of `disp.attacks.triggers`.
        rate: share of the rows that is poisoned.
        seed: of everything.
    """

    target: str
    trigger: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """What its folder and its bars are called."""
        return f"{self.target}-{self.trigger}-{self.rate:g}-seed{self.seed}"


@dataclass(frozen=True)
class Cell:
    """One attack and one defence, by the name that the experiment gives it; of a sweep, one ranking."""

    attack: Attacked
    defence: str

    @property
    def name(self) -> str:
        """What tells it from the others, for people."""
        return f"{self.attack.name} {self.defence}"


def cells_of(experiment: Experiment, only: str | None = None) -> list[Cell]:
    """The cells of an experiment, those of one attack together.

    Args:
        experiment: the experiment.
        only: such as ``target=refusal,trigger=patch,seed=0``: the cells with these values; several values of one key
            are joined by "+". The keys are target, trigger, rate, seed and defence.

    Raises:
        DispError: ``only`` names what the experiment has not.
    """
    names: dict[str, Sequence[object]] = {
        "target": experiment.targets,
        "trigger": experiment.triggers,
        "rate": experiment.poison_rates,
        "seed": experiment.seeds,
        "defence": tuple(experiment.defences),
    }
    for part in filter(None, (only or "").split(",")):
        key, equals, wanted = part.strip().partition("=")
        if key not in names:
            raise unknown_name("key of --only", key, names)
        if not equals or not wanted:
            raise DispError(f"--only takes key=value, several joined by commas, got {part!r}")
        known = {f"{value:g}" if isinstance(value, float) else str(value): value for value in names[key]}
        chosen = []
        for value in wanted.split("+"):
            value = _as_written(value) if key == "rate" else value
            if value not in known:
                raise unknown_name(f"{key} of --only", value, known)
            chosen.append(known[value])
        names[key] = chosen
    found = []
    for target, trigger, rate, seed, defence in product(*names.values()):
        found.append(Cell(Attacked(str(target), str(trigger), float(str(rate)), int(str(seed))), str(defence)))
    return found


def _as_written(rate: str) -> str:
    """A rate as it is in names: 0.10 as 0.1."""
    try:
        return f"{float(rate):g}"
    except ValueError:
        return rate


def by_attack(cells: Sequence[Cell]) -> dict[Attacked, list[str]]:
    """The defences of each attack."""
    grouped: dict[Attacked, list[str]] = {}
    for cell in cells:
        grouped.setdefault(cell.attack, []).append(cell.defence)
    return grouped
