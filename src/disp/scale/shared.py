"""Several processes that share a folder and nothing else: under torchrun, Slurm, or started by hand.

Each works on every so manieth batch of the plan and appends to a file of its own. The first puts the files together
when all is there; the others wait for that. There is no other communication: a process that died is started again,
with the others or alone, and does what is left of its batches. Another number of processes may go on with the run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from disp.errors import DispError
from disp.files import append_jsonl, read_finished_jsonl, write_json
from disp.locks import locked
from disp.models.interface import MDLM
from disp.processes import Place, as_if_alone
from disp.scale.parts import Results, in_order, part_file, rows_of
from disp.scale.stage import Row, Stage, T
from disp.scale.workers import Workers

# What processes compare, so that none works by another plan.
PLAN = "plan.json"
# Which process leads: another one each time that it is started.
LAUNCH = "launch.json"


@dataclass(frozen=True)
class Patience:
    """How processes wait for each other, in seconds.

    Attributes:
        between: looks at the folder.
        told: until it is said on stderr what is waited for.
        silence: without a new row of anybody until a process gives up. A batch of the slowest setting, 32 rows of 128
            full-size steps, takes 7 minutes.
    """

    between: float = 0.5
    told: float = 300.0
    silence: float = 3600.0


@dataclass(frozen=True)
class Ranks(Workers):
    """Processes that were started together.

    Attributes:
        place: which of them this one is.
        patience: how it waits for the others.
    """

    place: Place = field(default_factory=Place)
    patience: Patience = field(default_factory=Patience)

    @property
    def leads(self) -> bool:
        """The first does."""
        return self.place.rank == 0

    def wait_for(self, file: Path) -> None:
        """Wait for a file of the first process.

        Raises:
            DispError: it does not come.
        """
        if not self.leads:
            self._wait(file.exists, lambda: 0, f"{file} of the first process")

    def first_does(self, file: Path, work: Callable[[Callable[[], None]], None]) -> None:
        """See `Workers.first_does`; the first process does it, and sees nothing of the others meanwhile."""
        sign = file.with_name(f"{file.name}.further")
        if self.leads:
            if not file.exists():
                with as_if_alone():
                    work(lambda: write_json(sign, {"at": time.time()}))
            sign.unlink(missing_ok=True)
            return
        seen = 0

        def further() -> int:
            nonlocal seen
            before = seen
            with suppress(FileNotFoundError):
                seen = sign.stat().st_mtime_ns
            return int(seen != before)

        self._wait(file.exists, further, f"the first process to write {file}")

    def open(self, folder: Path) -> None:
        """The first process tells the others that it is there, and that it is another one than the one before."""
        if self.leads:
            write_json(folder / LAUNCH, {"launch": uuid4().hex})

    def finish(self, folder: Path) -> None:
        """The first process deletes it when the others have said that they are done; they leave when it is deleted.

        They say it to the one that leads now: where it was killed and started again, they say it again, and what they
        said to the one before counts for nothing.
        """
        if not self.leads:
            said = None

            def deleted() -> bool:
                nonlocal said
                launch = _told(folder / LAUNCH)
                if launch is not None and launch != said:
                    write_json(folder / f"done-{self.place.rank:05}.json", launch)
                    said = launch
                return not folder.exists()

            self._wait(deleted, lambda: 0, f"the first process to be done with {folder}")
            return
        launch = _told(folder / LAUNCH)
        others = [folder / f"done-{rank:05}.json" for rank in range(1, self.place.world)]
        self._wait(
            lambda: all(_told(file) == launch for file in others),
            lambda: 0,
            f"the other processes to be done with {folder}",
        )
        super().finish(folder)

    def share(self, model: MDLM, stage: Stage[T], keep: Callable[[Row], None], progress: Callable[[int], None]) -> None:
        """This process's batches, then wait for those of the others.

        Raises:
            DispError: a process works by another plan, or has been silent for too long.
        """
        if not stage.items:
            return
        assert stage.file is not None, "processes that share work exchange files"
        results = Results(stage)
        results.look()
        progress(len(results.found))
        # Where the file alone has everything, the first process has put it together already.
        if not results.whole():
            folder = stage.parts / f"rank-{self.place.rank:05}"
            with locked(folder, of_all=True):
                self._agree(stage, results)
                progress(results.look())
                self._own_batches(model, stage, results, progress)
            self._rest(stage, results, progress)
            if not self.leads:
                for folder in (stage.parts, stage.parts.parent):
                    with suppress(OSError):  # not there any more, or with what others left
                        folder.rmdir()
        for row in rows_of(stage):
            keep(row)

    def _agree(self, stage: Stage[T], results: Results) -> None:
        """Make sure that all work by one plan."""
        file = stage.parts / PLAN
        told = {"plan": stage.digest}
        if self.leads:
            write_json(file, told)
            return

        def same() -> bool:
            try:
                return bool(json.loads(file.read_text(encoding="utf-8")) == told)
            except (FileNotFoundError, ValueError):
                return results.whole()

        self._wait(same, results.look, f"{file} with the plan of this process, which must be that of all")

    def _own_batches(self, model: MDLM, stage: Stage[T], results: Results, progress: Callable[[int], None]) -> None:
        part = part_file(stage, f"rank-{self.place.rank:05}")
        for _ in read_finished_jsonl(part):  # takes out what a kill has torn
            pass
        own = (batch for number, batch in enumerate(stage.batches) if number % self.place.world == self.place.rank)
        left = (batch for batch in own if any(stage.keys[index] not in results.found for index in batch))
        with closing(stage.done(model, left, ahead=self.ahead)) as done:
            for rows in done:
                append_jsonl(part, [row for row in rows if row["key"] not in results.found])
                progress(results.look())

    def _rest(self, stage: Stage[T], results: Results, progress: Callable[[int], None]) -> None:
        def look() -> int:
            new = results.look()
            progress(new)
            return new

        if self.leads:
            self._wait(lambda: results.complete, look, f"the rows of other processes in {stage.parts}")
            in_order(stage)
        else:
            self._wait(results.whole, look, f"the first process to write {stage.file}")

    def _wait(self, done: Callable[[], bool], look: Callable[[], int], what: str) -> None:
        since = told = time.monotonic()
        while not done():
            time.sleep(self.patience.between)
            now = time.monotonic()
            if look():
                since = now
            if now - since > self.patience.silence:
                raise DispError(
                    f"waited {self.patience.silence / 60:.0f} minutes for {what}; start the same command again with "
                    "all its processes to go on"
                )
            if now - told > self.patience.told:
                told = now
                print(f"process {self.place.rank} of {self.place.world} waits for {what}", file=sys.stderr, flush=True)


def _told(file: Path) -> Any:
    """What a file of another process says; None where it is not there."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # files may be deleted at any time
        return None
