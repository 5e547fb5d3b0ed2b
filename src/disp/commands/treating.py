"""Options of what is done with poisoned rows, and of who says which they are."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter

from disp.commands.options import Rows, list_problems
from disp.errors import DispError
from disp.purification.names import Remedy

if TYPE_CHECKING:
    from disp.data.dataset import Dataset
    from disp.defence.defend import Defence
    from disp.purification.purify import Purified
    from disp.purification.remedies import Treatment


@Parameter(name="*")
@dataclass(frozen=True)
class Treating:
    """What is done with the rows that count as poisoned.

    Attributes:
        remedy: Let the model answer them again, leave them out, or take the answers of a second dataset.
        trusted: With --remedy restore the dataset with the answers to take: its rows have the same ids, pictures and
            questions. Rows without such a row are left out and named; --strict stops at the first.
        trusted_images: Folder that image paths of the trusted dataset are relative to; that of --images if not given.
        decisions: What a person decided, as `disp review` writes it: a CSV file with the columns id and decision (yes,
            no or skip), or JSON lines. Yes, it is poisoned, and no, it is honest, win over the audit.
    """

    remedy: Remedy = "rewrite"
    trusted: Path | None = None
    trusted_images: Path | None = None
    decisions: Path | None = None

    def check(self) -> None:
        """Make sure that the options go together, before anything is read.

        Raises:
            DispError: they do not.
        """
        from disp.purification.remedies import check_remedy

        check_remedy(self.remedy, trusted=self.trusted is not None)
        if self.trusted_images is not None and self.trusted is None:
            raise DispError("--trusted-images is for --trusted, which is not given")

    def treatment(self, dataset: Dataset, rows: Rows) -> Treatment:
        """What was asked for; ``dataset`` are the rows that it is for, ``rows`` how they were read."""
        from disp.data.decisions import NO_DECISIONS, read_decisions
        from disp.data.loading import load_dataset
        from disp.data.trusted import trusted_answers
        from disp.purification.remedies import Treatment

        self.check()
        decisions = NO_DECISIONS
        if self.decisions is not None:
            ids = {sample.id for sample in dataset.samples}
            decisions = read_decisions(self.decisions, ids, dataset.path)
            told = ", ".join(f"{count} {word}" for word, count in decisions.counts().items())
            print(f"decisions of {self.decisions}: {told}", file=sys.stderr)
        trusted = None
        if self.trusted is not None:
            second = load_dataset(
                self.trusted,
                self.trusted_images or rows.images,
                allow_download=rows.allow_download,
                leave_out=rows.fields_left_out(),
            )
            list_problems(second.problems)
            trusted = trusted_answers(second, dataset)
        treatment = Treatment(self.remedy, trusted, decisions, rows.strict)
        treatment.check(dataset.samples)
        return treatment


TREATING = Treating()


def what_was_done(treatment: Treatment, result: Purified, rows: int) -> str:
    """One line on a purification of so many rows."""
    if treatment.remedy == "drop":
        return f"{len(result.left_out)} of {rows} rows left out"
    left_out = f", {len(result.left_out)} left out" if result.left_out else ""
    if treatment.remedy == "restore":
        return f"{len(result.restored)} of {rows} rows have their trusted answers{left_out}"
    return f"{len(result.rewritten)} of {rows} rows rewritten{left_out}"


def why_left_out(treatment: Treatment, found: Defence) -> str:
    """One line on the rows that are not in the purified data; empty where nothing is to be told."""
    count = len(found.left_out)
    told = {
        "rewrite": f"{count} rows say a planted phrase when they are rewritten, and are not in the purified data",
        "drop": f"{count} rows are left out of the purified data",
        "restore": f"{len(found.restored)} rows have their trusted answers; {count} have none, and are left out",
    }
    return told[treatment.remedy] if count or found.restored else ""
