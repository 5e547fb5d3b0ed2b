"""What every step of an audit is given: the model and the data, and what the steps before it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from disp.auditing.carriers import region_of
from disp.auditing.config import AuditConfig
from disp.auditing.hypothesis import Finding, Hypothesis
from disp.auditing.phrases import Phrase
from disp.data.index import Index
from disp.data.sample import Query, Sample
from disp.models.interface import MDLM
from disp.progress import ProgressBar
from disp.scale.workers import ALONE, Workers
from disp.suspicion.carriers import Region
from disp.suspicion.evidence import Evidence


@dataclass(frozen=True)
class Context:
    """An audit between two steps; a step returns another one.

    Attributes:
        model: the model under audit.
        index: of the dataset; see `disp.data.index`.
        samples: all samples with an image, by id, in the data's order.
        above: ids of those above the threshold of suspicion.
        threshold: that threshold in nats.
        evidence: of every turn, by key.
        config: see `AuditConfig`.
        progress: see `disp.progress`.
        folder: of the run, for results of long steps; None to keep them nowhere.
        workers: who does long steps; see `disp.scale`.
        hypotheses: all that was proposed so far, tested or not.
        findings: what came of those that were tested, without those whose phrase does not hang on anything.
        explained: ids of the samples whose pictures were proven to carry the trigger of a phrase.
        tests: how many phrases were tested so far, those of the present search included; p-values are corrected for
            these, not for what later searches test.
    """

    model: MDLM
    index: Index
    samples: Mapping[str, Sample]
    above: frozenset[str]
    threshold: float
    evidence: Mapping[str, Evidence]
    config: AuditConfig
    progress: ProgressBar
    folder: Path | None = None
    workers: Workers = ALONE
    hypotheses: tuple[Hypothesis, ...] = ()
    findings: tuple[Finding, ...] = ()
    explained: frozenset[str] = frozenset()
    tests: int = 0

    def region(self, query: Query) -> Region:
        """The region that an answer hangs on; see `disp.auditing.carriers.region_of`."""
        return region_of(self.model, query, self.evidence, self.config.proof.region_reach)

    def proven(self, phrase: Phrase) -> bool:
        """Whether the phrase says what that of a confirmed finding says."""
        return any(each.confirmed and each.phrase.said_in(phrase.text) for each in self.findings)

    def unasked(self, phrase: Phrase) -> Hypothesis | None:
        """The sentence that recurs whatever is asked which this phrase is, or most of it; None where there is none.

        See `disp.auditing.finders.unasked`.
        """
        for each in self.hypotheses:
            if each.found_by == "unasked":
                sentence = each.phrase
                most = 2 * len(phrase.words) > len(sentence.words) and phrase.said_in(sentence.text)
                if most or sentence.said_in(phrase.text):
                    return each
        return None

    def settled(self, finding: Finding) -> bool:
        """Whether a confirmed finding says what this one says; then this one adds nothing."""
        if finding.found_by != "unasked":
            return self.proven(finding.phrase)
        return any(each.confirmed and self.unasked(each.phrase) is finding.hypothesis for each in self.findings)

    def named(self, ids: Sequence[str]) -> list[Sample]:
        """The samples of these ids."""
        return [self.samples[key] for key in ids]

    def flagged(self) -> list[Sample]:
        """The samples above the threshold."""
        return [sample for key, sample in self.samples.items() if key in self.above]

    def unflagged(self) -> list[Sample]:
        """The samples below the threshold whose pictures were not proven to carry a trigger."""
        return [sample for key, sample in self.samples.items() if key not in self.above and key not in self.explained]

    def knowing(self, evidence: Mapping[str, Evidence]) -> Context:
        """The same with new evidence of some turns."""
        return replace(self, evidence={**self.evidence, **evidence})
