"""What is done with the rows that count as poisoned: new answers, trusted answers, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from disp.data.decisions import NO_DECISIONS, Decisions
from disp.data.sample import Sample
from disp.data.trusted import Trusted
from disp.errors import DispError, unknown_name
from disp.purification.names import Remedy
from disp.words import shortened

REMEDIES: tuple[Remedy, ...] = get_args(Remedy)


@dataclass(frozen=True)
class Treatment:
    """What is done with poisoned rows, and who says which they are.

    Attributes:
        remedy: "rewrite" lets the model answer again under masking, "drop" leaves the rows out, "restore" takes the
            answers of ``trusted`` and leaves out the rows that have none there.
        trusted: where "restore" takes answers from.
        decisions: what a person decided; it wins over the audit.
        strict: stop at the first row that "restore" has no answers for, instead of leaving it out.
    """

    remedy: Remedy = "rewrite"
    trusted: Trusted | None = None
    decisions: Decisions = NO_DECISIONS
    strict: bool = False

    def __post_init__(self) -> None:
        if self.remedy not in REMEDIES:
            raise unknown_name("remedy", self.remedy, REMEDIES)
        check_remedy(self.remedy, trusted=self.trusted is not None)

    def check(self, samples: Sequence[Sample]) -> None:
        """Make sure that what a person decided can be done.

        Raises:
            DispError: a row without a picture is to be rewritten under masking.
        """
        poisoned = self.decisions.ids("yes") if self.remedy == "rewrite" else ()
        for sample in samples:
            if sample.id in poisoned and not sample.images:
                place = self.decisions.by_id[sample.id].place
                raise DispError(
                    f"{place}: row {shortened(sample.id)!r} has no picture to mask, so that it cannot be rewritten; "
                    "decide skip, or choose --remedy drop or restore"
                )

    def identity(self) -> dict[str, Any]:
        """What a run depends on; nothing where the rows that were found are rewritten."""
        return {
            **({} if self.remedy == "rewrite" else {"remedy": self.remedy}),
            **({"trusted": self.trusted.identity()} if self.trusted else {}),
            **({"decisions": self.decisions.identity()} if self.decisions.by_id else {}),
        }

    def summary(self) -> dict[str, Any]:
        """The same for people, for purify.json and defence.json."""
        return {
            **({} if self.remedy == "rewrite" else {"remedy": self.remedy}),
            **({"trusted": str(self.trusted.dataset.path)} if self.trusted else {}),
            **({"decisions": self.decisions.counts()} if self.decisions.by_id else {}),
        }


def check_remedy(remedy: Remedy, *, trusted: bool) -> None:
    """Make sure that a remedy goes with what is there; ``trusted`` is whether trusted answers are given.

    Raises:
        DispError: it does not.
    """
    if remedy == "restore" and not trusted:
        raise DispError("--remedy restore needs --trusted with a dataset to take the answers from")
    if trusted and remedy != "restore":
        raise DispError(f"--trusted is for --remedy restore; --remedy {remedy} takes no answers from it")


REWRITE = Treatment()
