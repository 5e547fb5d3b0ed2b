"""A folder beside a file, for what is finished while several workers are at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from disp.data.sample import Query, digests_of, pictures_sha256
from disp.errors import DispError
from disp.files import claim
from disp.locks import locked
from disp.scale.stage import digest_of
from disp.scale.workers import Alone, Workers


def parts_of(out: Path | None, workers: Workers) -> Path | None:
    """The folder of `folder_beside`; None where there is none."""
    return None if out is None or isinstance(workers, Alone) else out.with_name(f"{out.name}.parts")


@contextmanager
def folder_beside(
    out: Path | None, workers: Workers, run: Mapping[str, Any], queries: Sequence[Query]
) -> Iterator[Path | None]:
    """A folder for finished results, which a stopped run goes on with; it is deleted when all are done.

    What is asked is part of the run, and so are the pictures. Their files are read by the process that leads, and by
    the others only where there is a run to go on with: that may be one of other pictures, whose leader stops.

    Args:
        out: the file that the results end in, written in the meantime by the process that leads.
        workers: who does the work; one process alone needs no folder, and gets None.
        run: what makes the run this one, besides what is asked.
        queries: what is asked.

    Raises:
        DispError: there is no file to put it beside, a picture cannot be read, or the folder is another run's.
    """
    folder = parts_of(out, workers)
    if folder is None:
        if not isinstance(workers, Alone):
            raise DispError("several workers need --out: their results meet in a folder beside that file")
        yield None
        return
    with locked(folder) if workers.leads else nullcontext():
        file = folder / "run.json"
        reads = workers.leads or file.exists()
        workers.wait_for(file)
        told = {**run, "queries": digest_of(queries)}
        if reads:
            told["pictures_sha256"] = pictures_sha256(digests_of({query.key: query.images for query in queries}))
        claim(file, told, "results", ignore=("batch_size",) if reads else ("batch_size", "pictures_sha256"))
        workers.open(folder)
        yield folder
        workers.finish(folder)
