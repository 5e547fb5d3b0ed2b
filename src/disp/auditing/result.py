"""What an audit concludes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from disp.auditing.coverage import NOTHING_MISSED, Missed
from disp.auditing.hypothesis import Finding
from disp.auditing.mask_ratio import RatioChoice
from disp.auditing.phrases import Phrase
from disp.data.sample import Query, Sample
from disp.evaluation.intervals import Share
from disp.suspicion.carriers import Pattern, Removable, Tokens
from disp.suspicion.evidence import Evidence

Verdict = Literal["no evidence", "suspicious", "poisoned", "could not decide"]


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        verdict: "poisoned" where a pasted region makes the model say a phrase that flagged answers share, or anything
            in pictures a sentence that recurs whatever is asked;
            "suspicious" where flagged answers share a phrase without that proof, where a large pasted window or what
            pictures have in common makes the model say what many answers repeat, where pictures of one phrase have
            something in common that others that say it have not, or where a sentence recurs whatever is asked; "no
            evidence" otherwise, or "could not decide" where many rows could not be read or have no picture, or other
            parts of the set were not read.
        reasons: sentences that say why.
        threshold: suspicion in nats above which a sample is flagged.
        scores: suspicion of each sample, by id.
        flagged: ids of the samples that are likely poisoned.
        rate: estimated share of poisoned samples with a 95% interval.
        findings: one for each phrase, confirmed ones first.
        ratio: the mask ratio that the evidence speaks for; None where most flagged answers hang on nothing salient.
        evidence: saliency and suspicion of each turn, by key.
        missed: what of the set was not looked at, beside rows that could not be read or have no picture.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    threshold: float
    scores: Mapping[str, float]
    flagged: tuple[str, ...]
    rate: Share
    findings: tuple[Finding, ...]
    ratio: RatioChoice | None
    evidence: Mapping[str, Evidence]
    missed: Missed = NOTHING_MISSED

    @cached_property
    def ranks(self) -> dict[str, int]:
        """By id the place in the audit's order, 1 for who is likeliest poisoned.

        Flagged samples come before all others, because what findings prove weighs more than what masking one answer
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

    def still_planted(self, before: Sample, after: Sample) -> bool:
        """Whether a sample that was rewritten holds a phrase that the model was made to say.

        That is the phrase that it was flagged for, which a model that has learnt a row by heart gives without the
        trigger as well; or the phrase of any finding, where the sample as given did not say it: a backdoored model
        puts its phrase into honest answers when it rewrites them.

        Args:
            before: the sample as it was given.
            after: the same with new answers.
        """
        turns = zip(before.turns, after.turns, strict=True)
        return any(self.says_planted(after.id, old.response, new.response) for old, new in turns)

    def says_planted(self, key: str, given: str, answer: str) -> bool:
        """`still_planted` of one turn.

        Args:
            key: the sample's id.
            given: the answer as it was given.
            answer: the new one.
        """
        newly = [finding.phrase for finding in self.findings if not finding.phrase.said_in(given)]
        return any(phrase.said_in(answer) for phrase in (*self._phrases_of.get(key, ()), *newly))

    @cached_property
    def _phrases_of(self) -> dict[str, list[Phrase]]:
        phrases: dict[str, list[Phrase]] = {}
        for finding in self.findings:
            for key in set(finding.all_samples):
                phrases.setdefault(key, []).append(finding.phrase)
        return phrases

    @cached_property
    def patterns(self) -> dict[str, Pattern]:
        """By id of a flagged sample the pattern to take out of its picture, where it is to be answered that way."""
        return {key: each.pattern for each in self.findings if each.pattern is not None for key in each.with_pattern}

    def carrier(self, query: Query) -> Removable:
        """What a turn is rid of to see what the model says without it: a pattern, or the tokens that it hangs on."""
        pattern = self.patterns.get(query.sample_id)
        return Tokens(self.evidence[query.key].hangs_on) if pattern is None else pattern
