"""A folder beside a file, for what is finished while several workers are at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from disp.errors import DispError
from disp.files import claim
from disp.locks import locked
from disp.scale.workers import Alone, Workers


def parts_of(out: Path | None, workers: Workers) -> Path | None:
    """The folder of `folder_beside`; None where there is none."""
    return None if out is None or isinstance(workers, Alone) else out.with_name(f"{out.name}.parts")


@contextmanager
def folder_beside(out: Path | None, workers: Workers, run: Mapping[str, Any]) -> Iterator[Path | None]:
    """A folder for finished results, which a stopped run goes on with; it is deleted when all are done.

    Args:
        out: the file that the results end in, written in the meantime by the process that leads.
        workers: who does the work; one process alone needs no folder, and gets None.
        run: what makes the run this one.

    Raises:
        DispError: there is no file to put it beside, or the folder is another run's.
    """
    folder = parts_of(out, workers)
    if folder is None:
        if not isinstance(workers, Alone):
            raise DispError("several workers need --out: their results meet in a folder beside that file")
        yield None
        return
    with locked(folder) if workers.leads else nullcontext():
        workers.wait_for(folder / "run.json")
        claim(folder / "run.json", run, "results", ignore=("batch_size",))
        workers.open(folder)
        yield folder
        workers.finish(folder)
