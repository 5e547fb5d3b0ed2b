"""What becomes of the rows that count as poisoned: one function for each remedy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from disp.data.dataset import Problem
from disp.data.index import Index
from disp.data.sample import Sample, queries_of
from disp.data.trusted import Trusted, answers_from
from disp.errors import DispError
from disp.models.interface import MDLM
from disp.progress import ProgressBar
from disp.purification.config import PurifyConfig
from disp.purification.rewriting import rewrite_answers
from disp.scale.workers import Workers
from disp.suspicion.carriers import Pattern
from disp.suspicion.evidence import Evidence


@dataclass(frozen=True)
class Treated:
    """What became of the rows that count as poisoned.

    Attributes:
        gone: ids of those that are not in the purified set.
        answers: by id the new answers of those that have any, one a turn.
        masks: by key the visual tokens that were masked where an answer was rewritten.
        untrusted: those that there were no trusted answers for, and why.
    """

    gone: frozenset[str]
    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    masks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    untrusted: tuple[Problem, ...] = ()

    def over(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with their new answers, those included that are left out."""
        return [each.with_responses(self.answers[each.id]) if each.id in self.answers else each for each in samples]


def dropped(poisoned: Collection[str]) -> Treated:
    """Poisoned rows are left out."""
    return Treated(frozenset(poisoned))


def restored(trusted: Trusted, index: Index, poisoned: Collection[str], *, strict: bool) -> Treated:
    """Poisoned rows get trusted answers, and are left out where there are none.

    Args:
        trusted: where these are taken from.
        index: of all samples.
        poisoned: ids of those that count as poisoned.
        strict: stop at the first of them that there are none for.

    Raises:
        DispError: there are none, with ``strict``.
    """
    answers, untrusted = answers_from(trusted, index, poisoned)
    if untrusted and strict:
        raise DispError(f"{untrusted[0].place}: {untrusted[0].reason}")
    return Treated(frozenset(poisoned) - answers.keys(), answers, untrusted=untrusted)


def rewritten(
    model: MDLM,
    asked: Sequence[Sample],
    index: Index,
    poisoned: Collection[str],
    evidence: Mapping[str, Evidence],
    patterns: Mapping[str, Pattern],
    config: PurifyConfig,
    file: Path,
    *,
    leave_out: Callable[[Sample, Sample], bool],
    workers: Workers,
    progress: ProgressBar,
) -> Treated:
    """The model answers poisoned rows again, under masking.

    Args:
        model: the backdoored model.
        asked: what is asked about each sample.
        index: of all samples.
        poisoned: ids of those that count as poisoned.
        evidence: by key, of every turn of theirs.
        patterns: see `disp.purification.purify.purify`.
        config: how.
        file: see `rewrite_answers`.
        leave_out: of a sample as it was and as it was rewritten, whether it is left out all the same.
        workers: who does it.
        progress: see `disp.progress`.
    """
    again = frozenset(poisoned)
    chosen = [sample for sample in asked if sample.id in again]
    with progress("rewriting", len(queries_of(chosen))) as advance:
        found, masks = rewrite_answers(
            model, chosen, evidence, patterns, config, file, workers=workers, progress=advance
        )
    answers = {key: _answers_of(index.by_id[key], found) for key in poisoned}
    before = [index.by_id[key] for key in poisoned]
    gone = [sample.id for sample in before if leave_out(sample, sample.with_responses(answers[sample.id]))]
    return Treated(frozenset(gone), answers, masks)


def _answers_of(sample: Sample, answers: Mapping[str, str]) -> list[str]:
    """The new answers of a sample, and the old ones of the turns that were not asked."""
    return [answers.get(key, turn.response) for key, turn in zip(sample.keys, sample.turns, strict=True)]
