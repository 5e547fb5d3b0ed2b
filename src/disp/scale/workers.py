"""Who does the work of a stage: this process alone, or several; see `disp.scale.shared` and `disp.scale.ray_pool`."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from disp.errors import DispError
from disp.files import append_jsonl, check_unused, read_finished_jsonl, write_json
from disp.models.interface import MDLM
from disp.scale.parts import fold_in, in_order
from disp.scale.stage import Order, Row, Stage, T, planned


@dataclass(frozen=True)
class Workers(ABC):
    """Who does the work of a stage.

    Attributes:
        order: how items are put into batches.
        ahead: whether pictures are opened ahead, see `disp.scale.stage.Stage.done`.
    """

    order: Order = "data"
    ahead: bool | None = field(default=None, kw_only=True)

    @property
    def leads(self) -> bool:
        """Whether this process writes what a run leaves behind; of several processes one does."""
        return True

    def wait_for(self, file: Path) -> None:
        """Wait until the process that leads has written a file, where this one does not lead."""
        return None

    def agreed(self, file: Path, choose: Callable[[], int]) -> int:
        """A batch size that was not given: all workers go by one, also when the run is started again.

        Args:
            file: where it is written down, by the process that leads.
            choose: what it is.

        Raises:
            DispError: the file is damaged, or its folder is a model's or a dataset's.
        """
        if self.leads and not file.exists():
            check_unused(file.parent)
            write_json(file, {"batch_size": choose()})
        self.wait_for(file)
        try:
            return int(json.loads(file.read_text(encoding="utf-8"))["batch_size"])
        except (ValueError, KeyError, TypeError):
            raise DispError(f"{file} holds no batch size; delete it, and start all processes again") from None

    def first_does(self, file: Path, work: Callable[[Callable[[], None]], None]) -> None:
        """Have one process do what ends in a file, if that is not there; the others wait for it.

        Args:
            file: what is written last.
            work: does it. It is given what to call whenever it has come further, by which the others know.

        Raises:
            DispError: ``work`` does, or nothing comes for too long.
        """
        if not file.exists():
            work(lambda: None)

    def open(self, folder: Path) -> None:
        """Begin with a folder of results that `finish` deletes; called when the folder is known to be this run's."""
        return None

    def finish(self, folder: Path) -> None:
        """Delete a folder with results when no worker needs it any more."""
        shutil.rmtree(folder, ignore_errors=True)

    def work(
        self,
        model: MDLM,
        items: Sequence[T],
        step: Callable[[MDLM, Sequence[T]], list[Row]],
        *,
        size: int,
        file: Path | None,
        keep: Callable[[Row], None],
        progress: Callable[[int], None] = lambda count: None,
        batches: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Have each item worked on once, in fixed batches.

        Args:
            model: the model, for what this process does itself.
            items: see `disp.scale.stage.Stage`, as ``step``.
            step: what is done with a batch.
            size: items a batch, at most.
            file: JSONL file of the rows; items whose rows it holds already are not worked on again.
            keep: called with the row of each item, once.
            progress: called with the number of items finished.
            batches: which items are worked on together, where it is not for `planned` to say.

        Raises:
            DispError: ``step`` does, or workers are lost.
        """
        chosen = planned(items, size, self.order) if batches is None or self.order != "data" else batches
        self.share(model, Stage(items, step, chosen, file), keep, progress)

    @abstractmethod
    def share(self, model: MDLM, stage: Stage[T], keep: Callable[[Row], None], progress: Callable[[int], None]) -> None:
        """See `work`."""


@dataclass(frozen=True)
class Alone(Workers):
    """This process does everything."""

    def share(self, model: MDLM, stage: Stage[T], keep: Callable[[Row], None], progress: Callable[[int], None]) -> None:
        """Batch by batch, each appended to the file when it is finished."""
        # What several workers left when they were stopped.
        shared_before = stage.file is not None and fold_in(stage)
        left = dict.fromkeys(stage.keys)
        for row in read_finished_jsonl(stage.file) if stage.file else ():
            if row["key"] in left:
                del left[row["key"]]
                keep(row)
        if done := len(stage.items) - len(left):
            progress(done)
        batches = [batch for batch in stage.batches if any(stage.keys[index] in left for index in batch)]
        with closing(stage.done(model, batches, ahead=self.ahead)) as parts:
            for rows in parts:
                # Of a batch that was torn by a kill some are there already.
                new = [row for row in rows if row["key"] in left]
                for row in new:
                    del left[row["key"]]
                    keep(row)
                if stage.file:
                    append_jsonl(stage.file, new)
                progress(len(new))
        if stage.file and (shared_before or self.order != "data"):
            in_order(stage)


ALONE = Alone()
