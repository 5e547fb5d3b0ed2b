"""What a finder proposes and what came of it: a phrase, the samples that say it, and what may carry its trigger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from disp.auditing.config import AuditConfig
from disp.auditing.phrases import Phrase
from disp.auditing.planting import PlantingTest
from disp.data.sample import ImageSource, Query
from disp.suspicion.carriers import Pattern, Region, Removable, Tokens
from disp.suspicion.evidence import Evidence


@dataclass(frozen=True)
class Hypothesis:
    """A phrase that may be planted.

    Attributes:
        found_by: the finder's name in `disp.auditing.finders.FINDERS`, and in audit.json.
        phrase: what the answers share.
        samples: ids of those that speak for it.
        elsewhere: how many other samples say it.
        p_value: of a phrase that flagged answers share the corrected chance of that, see
            `disp.auditing.phrase_search.recurring_phrases`; of a sentence that goes with no question, see
            `disp.auditing.unasked.unasked_phrases`. None for one that was found otherwise.
        pattern: what their pictures have in common, to be taken out of them; None where tokens are masked.
        evidence: new evidence of their turns, by key, which holds once the phrase is proven: the tokens to mask, and
            how suspicious the answers are without them.
        least_effect: share of the changed pictures whose answers must say the phrase, if more than the usual one.
        in_corner: their pictures have a piece as many pixels from a corner, which is blurred where pictures of several
            sizes are scaled to one, and has no edge before a ground of its own colour.
    """

    found_by: str
    phrase: Phrase
    samples: tuple[str, ...]
    elsewhere: int
    p_value: float | None = None
    pattern: Pattern | None = None
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    least_effect: float = 0.0
    in_corner: bool = False

    def carrier(self, query: Query, evidence: Mapping[str, Evidence]) -> Removable:
        """What a turn of one of its samples is rid of to see whether the phrase goes away.

        Args:
            query: the turn.
            evidence: of every turn, its own included.
        """
        if self.pattern is not None:
            return self.pattern
        return Tokens(evidence[query.key].hangs_on)

    def beyond_doubt(self, config: AuditConfig) -> bool:
        """Whether flags alone speak for the phrase: nearly all who say it are flagged, and that by no chance.

        Words of honest answers that hang on little, such as names of small things, are flagged in a part of their
        holders.
        """
        share = len(self.samples) / (len(self.samples) + self.elsewhere)
        chance = self.p_value
        return chance is not None and chance <= config.false_alarm_rate and share >= config.proof.planted_share


@dataclass(frozen=True)
class Finding:
    """A hypothesis with its proof, or what is known without one.

    Attributes:
        hypothesis: what was tested.
        test: what pasting its regions into other pictures did, or laying its pattern over these; None where nothing
            could be planted.
        confirmed: whether that makes the model say the phrase.
        instead: the words that most answers gain where the phrase goes away, such as the name of the thing that a
            trigger makes the model misname. Of what is in the pictures and not confirmed, only answers count in which
            the model says the phrase where nothing is taken away.
        trigger: the region that does so most often, the trigger candidate; None where a pattern does.
        unlearnt: it is in the data, and nothing was seen to make the model say the phrase.
        more: ids of further samples whose answers hold the phrase. If it is confirmed: less suspicious ones, ones that
            lose it under larger masks only, and ones whose pictures have the pattern or the copy. If it recurs whatever
            is asked: all others that say it.
        pattern: what the pictures of its answers have in common, if anything; see `disp.auditing.finders.patterns`.
        with_pattern: ids of the samples, among all, that are answered again with the pattern taken out of their
            pictures; the others with visual tokens masked.
        with_copy: ids of the samples, among all, that nothing but a copy in their pictures betrays; see
            `disp.auditing.finders.copies`.
        by_sentence: ids of the samples, among ``more``, that nothing but the sentence betrays: it recurs whatever is
            asked; see `disp.auditing.unasked`.
    """

    hypothesis: Hypothesis
    test: PlantingTest | None = None
    confirmed: bool = False
    instead: tuple[str, ...] = ()
    trigger: Region | None = None
    unlearnt: bool = False
    more: tuple[str, ...] = ()
    pattern: Pattern | None = None
    with_pattern: tuple[str, ...] = ()
    with_copy: tuple[str, ...] = ()
    by_sentence: tuple[str, ...] = ()

    @property
    def found_by(self) -> str:
        """See `Hypothesis`."""
        return self.hypothesis.found_by

    @property
    def phrase(self) -> Phrase:
        """See `Hypothesis`."""
        return self.hypothesis.phrase

    @property
    def may_be_standard(self) -> bool:
        """Whether it is a sentence in a set whose questions tell nothing of answers; see `disp.auditing.unasked`.

        That no question goes with it is no evidence then: an honest standard answer, or a line that belongs to some
        pictures ("The photo was taken at night."), looks the same.
        """
        return self.found_by == "unasked" and self.hypothesis.p_value is None

    @property
    def samples(self) -> tuple[str, ...]:
        """See `Hypothesis`."""
        return self.hypothesis.samples

    @property
    def all_samples(self) -> tuple[str, ...]:
        """``samples`` and ``more``."""
        return (*self.samples, *self.more)

    def with_trigger(self, image: ImageSource) -> ImageSource:
        """The picture with the trigger candidate in it, or as it is where there is none."""
        planted = self.trigger or self.pattern
        return image if planted is None else planted.planted_in(image)
