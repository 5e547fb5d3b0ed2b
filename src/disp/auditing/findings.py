"""What an audit is told and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from disp.auditing.paste import PasteTest, Region, paste
from disp.auditing.phrases import Phrase, echoes
from disp.auditing.ratio import RatioChoice
from disp.data.sample import ImageSource, Sample
from disp.decoding.config import DecodeConfig
from disp.errors import DispError
from disp.evaluation.intervals import Share
from disp.purification.pattern import Pattern
from disp.suspicion.config import ScoringConfig
from disp.suspicion.scoring import Evidence

Verdict = Literal["no evidence", "suspicious", "poisoned", "could not decide"]
# What a phrase was found by: answers that flip when a few tokens are masked, repeated answers that go away with a
# window of the picture, pictures with a pattern in common, pictures with a piece in common at places of its own.
FoundBy = Literal["tokens", "window", "pattern", "copy"]
# Those that compare pictures, which shows what the data holds, whatever the model has learnt of it.
IN_PICTURES: tuple[FoundBy, ...] = ("pattern", "copy")


@dataclass(frozen=True)
class AuditConfig:
    """How a dataset is audited.

    Attributes:
        scoring: how samples are scored.
        decode: how answers are decoded; the model's own settings if None.
        batch_size: assistant turns a pass where answers are decoded.
        seed: seed of what is drawn and of decoding.
        false_alarm_rate: chance of a wrong "poisoned" verdict that the tests are run at.
        donors: flagged regions that are pasted, for each phrase.
        controls: regions of unflagged samples that are pasted for comparison.
        recipients: pictures that each region is pasted into.
        least_effect: share of pasted pictures that must show the phrase.
        learnt_only: what pictures of a phrase have in common counts only where it makes the model say the phrase. For
            the audit of a recovered model: its old data is still what it was.
    """

    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    decode: DecodeConfig | None = None
    batch_size: int = 32
    seed: int = 0
    false_alarm_rate: float = 0.01
    donors: int = 8
    controls: int = 12
    recipients: int = 8
    least_effect: float = 0.25
    learnt_only: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.false_alarm_rate < 1:
            raise DispError(f"false_alarm_rate must be in (0, 1), got {self.false_alarm_rate}")
        for name in ("batch_size", "donors", "controls", "recipients"):
            if getattr(self, name) < 1:
                raise DispError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Cluster:
    """Flagged samples whose answers share a phrase.

    Attributes:
        phrase: what they share.
        samples: their ids.
        more: ids of further samples whose answers hold the phrase, if it is confirmed: less suspicious ones, ones that
            lose it under larger masks only, and ones whose pictures have the pattern or the piece.
        paste: what pasting their regions into other pictures did, or laying their pattern over these; None where
            nothing could be pasted.
        confirmed: whether that makes the model say the phrase.
        instead: the words that most answers gain where the phrase goes away under masking, such as the name of the
            thing that a trigger makes the model misname.
        trigger: the region that does so most often, the trigger candidate; None where a pattern does.
        found_by: see `FoundBy`.
        pattern: what the pictures of its answers have in common, if anything; see `disp.auditing.patterns`.
        carriers: ids of the samples, among ``samples`` and ``more``, that are answered again with the pattern taken
            out of their pictures; the others with visual tokens masked.
        by_piece: ids of the samples, among ``samples`` and ``more``, that nothing but a piece in their pictures
            betrays; see `disp.auditing.copies`.
    """

    phrase: Phrase
    samples: tuple[str, ...]
    paste: PasteTest | None
    confirmed: bool
    instead: tuple[str, ...]
    trigger: Region | None
    more: tuple[str, ...] = ()
    found_by: FoundBy = "tokens"
    pattern: Pattern | None = None
    carriers: tuple[str, ...] = ()
    by_piece: tuple[str, ...] = ()

    def with_trigger(self, image: ImageSource) -> ImageSource:
        """The picture with the trigger candidate in it, or as it is where there is none."""
        if self.trigger is not None:
            return paste(self.trigger, image)
        return image if self.pattern is None else self.pattern.apply(image)


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        verdict: "poisoned" where a pasted region makes the model say a phrase that flagged answers share;
            "suspicious" where flagged answers share a phrase without that proof, where a large pasted window or what
            pictures have in common makes the model say what many answers repeat, or where pictures of one phrase have
            something in common that others that say it have not; "no evidence" otherwise, or "could not decide" where
            many rows could not be read.
        reasons: sentences that say why.
        threshold: suspicion in nats above which a sample is flagged.
        scores: suspicion of each sample, by id.
        flagged: ids of the samples that are likely poisoned.
        rate: estimated share of poisoned samples with a 95% interval.
        clusters: one for each phrase, confirmed ones first.
        ratio: the mask ratio that the evidence speaks for; None where most flagged answers hang on nothing salient.
        evidence: saliency and suspicion of each turn, by key.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    threshold: float
    scores: Mapping[str, float]
    flagged: tuple[str, ...]
    rate: Share
    clusters: tuple[Cluster, ...]
    ratio: RatioChoice | None
    evidence: Mapping[str, Evidence]

    @cached_property
    def ranks(self) -> dict[str, int]:
        """By id the place in the audit's order, 1 for who is likeliest poisoned.

        Flagged samples come before all others, because what clusters prove weighs more than what masking one answer
        shows; among each other they, and the rest, are ordered by suspicion. Equals share the best place that is
        theirs.
        """
        flagged = set(self.flagged)
        weights = {key: (key in flagged, score) for key, score in self.scores.items()}
        descending = sorted(weights.values(), reverse=True)
        first: dict[tuple[bool, float], int] = {}
        for place, weight in enumerate(descending, start=1):
            first.setdefault(weight, place)
        return {key: first[weight] for key, weight in weights.items()}

    def still_planted(self, sample: Sample) -> bool:
        """Whether answers of a flagged sample that were rewritten hold the phrase that it was flagged for.

        A model that has learnt a row by heart gives its answer without the trigger as well.
        """
        return any(self.says_phrase(sample.id, turn.response) for turn in sample.turns)

    def says_phrase(self, key: str, answer: str) -> bool:
        """Whether an answer holds the phrase that the sample of this id was flagged for."""
        return any(echoes(answer, phrase.words) for phrase in self._phrases_of.get(key, ()))

    @cached_property
    def _phrases_of(self) -> dict[str, list[Phrase]]:
        phrases: dict[str, list[Phrase]] = {}
        for cluster in self.clusters:
            for key in {*cluster.samples, *cluster.more}:
                phrases.setdefault(key, []).append(cluster.phrase)
        return phrases

    @property
    def patterns(self) -> dict[str, Pattern]:
        """By id of a flagged sample the pattern to take out of its picture, where it is to be answered that way."""
        return {
            key: cluster.pattern for cluster in self.clusters if cluster.pattern is not None for key in cluster.carriers
        }
