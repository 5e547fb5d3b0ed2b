"""How long each phase of a run took, so that a plan of the next one can say how long it will take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from disp.files import read_json, write_json


@dataclass(frozen=True)
class Phases:
    """The clock of a folder: ``seconds.json`` holds seconds and units of work by phase.

    Attributes:
        folder: where the file lies.
    """

    folder: Path

    @contextmanager
    def phase(self, name: str, units: int) -> Iterator[None]:
        """Add the time spent inside, and so many rows, steps or answers; nothing where it fails."""
        start = time.monotonic()
        yield
        spent = self.read()
        before = spent.get(name, {"seconds": 0.0, "units": 0})
        seconds = round(before["seconds"] + time.monotonic() - start, 2)
        write_json(
            self.folder / "seconds.json", {**spent, name: {"seconds": seconds, "units": before["units"] + units}}
        )

    def read(self) -> dict[str, dict[str, float]]:
        """What was spent so far."""
        file = self.folder / "seconds.json"
        return dict(read_json(file)) if file.exists() else {}


def rates(spent: Iterable[Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """Seconds a unit by phase, from what several folders spent; phases without units are left out."""
    seconds: dict[str, float] = {}
    units: dict[str, float] = {}
    for each in spent:
        for name, found in each.items():
            seconds[name] = seconds.get(name, 0.0) + found["seconds"]
            units[name] = units.get(name, 0.0) + found["units"]
    return {name: seconds[name] / units[name] for name in seconds if units[name]}
