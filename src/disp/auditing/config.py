"""Settings of an audit: every number that decides what it finds, one class a step.

A run's folder keeps them all, so that a change of one is noticed. Where a number was measured, its comment says how;
the other ones were set by hand on the built-in model's planted and clean sets, and docs/results.md says what the audit
finds with them. The finders' own are in `disp.auditing.finder_config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from disp.auditing.finder_config import (
    CopiesConfig,
    CornersConfig,
    PatternsConfig,
    PhrasesConfig,
    RecurrenceConfig,
    SentencesConfig,
    UnaskedConfig,
)
from disp.decoding.config import DecodeConfig
from disp.errors import DispError, check_counts, check_growing, check_not_negative, check_shares
from disp.suspicion.config import SaliencyConfig, ScoringConfig


@dataclass(frozen=True)
class ProofConfig:
    """How a phrase is proven: what its answers hang on must make the model say it; see `disp.auditing.proof`.

    Attributes:
        donors: flagged regions that are pasted, for each phrase.
        controls: regions of unflagged samples that are pasted for comparison, or random patterns that are laid on.
        recipients: pictures that each region is pasted into.
        least_effect: share of the changed pictures whose answers must say the phrase.
        regroupings: a permutation test counts all regroupings up to so many; beyond, it draws as many.
        small_share: share of the samples, those with the smaller regions, that donors are taken from.
        staying_share: a phrase hangs on something else if more than this share of its answers keep it without that.
        instead_share: share of these answers that must gain a word for it to count as said instead.
        control_pictures: pictures that random patterns are made of.
        region_reach: rows and columns that the tokens of one region lie apart at most.
        planted_share: a phrase that no test proves is taken for planted if so many of its holders are flagged.
    """

    # With three of eight donors' regions and twelve controls there are 455 regroupings: 1 in 455 is below 1% of four
    # phrases.
    donors: int = 8
    controls: int = 12
    recipients: int = 8
    least_effect: float = 0.25
    regroupings: int = 20_000
    # A trigger is small; a large region may hold the thing that is spoken of instead.
    small_share: float = 0.5
    staying_share: float = 0.5
    instead_share: float = 0.5
    control_pictures: int = 40
    # One of a trigger's tokens, between two others, may be missing.
    region_reach: int = 2
    # Names of small things, on which honest answers hang, are flagged in a part of their holders.
    planted_share: float = 2 / 3

    def __post_init__(self) -> None:
        check_counts(self, "donors", "controls", "recipients", "regroupings")
        check_counts(self, "control_pictures", least=2)  # what is random is drawn from how they differ
        check_counts(self, "region_reach", least=0)
        check_shares(self, "least_effect", "small_share", "staying_share", "instead_share", "planted_share")


@dataclass(frozen=True)
class ExtensionConfig:
    """How further rows of a proven phrase are found; see `disp.auditing.extension`.

    Attributes:
        ratios: shares of the visual tokens that are masked one after the other until the phrase goes away.
        told_share: if so many of a phrase's flagged samples have its pattern or copy, nobody else is asked about.
        threshold_share: share of the threshold of suspicion that is enough for who says a proven phrase.
    """

    # From the largest slice that suspicion masks on; at 0.3 honest answers keep 54 to 75% of their quality.
    ratios: tuple[float, ...] = (0.06, 0.12, 0.2, 0.3)
    # Then that is the trigger, and whoever says the phrase without it is honest: a larger mask makes the name of a
    # frequent thing appear in honest answers too.
    told_share: float = 0.95
    # The phrase is evidence of its own; an honest answer that happens to hold it does not hang on a region at all.
    threshold_share: float = 0.25

    def __post_init__(self) -> None:
        check_growing("ratios", self.ratios)
        check_shares(self, "told_share", "threshold_share")


@dataclass(frozen=True)
class RatioConfig:
    """How a mask ratio is chosen; see `disp.auditing.mask_ratio`.

    Attributes:
        ratios: those that are tried, in growing order.
        tolerance: of ratios that do as well as the best but for this much, the smallest is chosen.
        least_purged: share of the suspicious answers that some ratio must replace.
        turns: turns of either kind that are answered again, at most.
    """

    ratios: tuple[float, ...] = (0.01, 0.02, 0.04, 0.06, 0.09, 0.14, 0.2, 0.3)
    # The smallest costs least of the picture.
    tolerance: float = 0.02
    least_purged: float = 0.5
    turns: int = 48

    def __post_init__(self) -> None:
        check_growing("ratios", self.ratios)
        check_not_negative(self, "tolerance")
        check_shares(self, "least_purged")
        check_counts(self, "turns")


@dataclass(frozen=True)
class ShownConfig:
    """What people are shown; it changes no verdict.

    Attributes:
        most_suspicious: most suspicious samples whose answers are asked for.
        flagged: most suspicious flagged samples whose answers are asked for.
        random_control: samples above the threshold that are masked at random for comparison, at most.
    """

    most_suspicious: int = 24
    flagged: int = 200
    random_control: int = 32

    def __post_init__(self) -> None:
        check_counts(self, "most_suspicious", "flagged", "random_control", least=0)


@dataclass(frozen=True)
class AuditConfig:
    """How a dataset is audited.

    Attributes:
        scoring: how samples are scored.
        decode: how answers are decoded; the model's own settings if None.
        batch_size: assistant turns a pass where answers are decoded.
        seed: seed of what is drawn and of decoding.
        false_alarm_rate: chance that the tests of one search, all together, accuse an honest phrase; those of the first
            one give "poisoned". See docs/audit.md.
        learnt_only: what pictures of a phrase have in common counts only where it makes the model say the phrase. For
            the audit of a recovered model: its old data is still what it was.
        set_aside_share: share of the rows that could not be read beyond which finding nothing decides nothing.
        text_rows_share: share of the rows without a picture beyond which finding nothing decides nothing; 1 decides
            however many there are.
        phrases: what makes words a phrase.
        tokens: the search for phrases of flagged answers.
        patterns: the search for patterns.
        copies: the search for what was copied into pictures.
        corners: the search for what lies as many pixels from a corner in all of them.
        unasked: the search for sentences that go with no question.
        sentences: the search for repeated sentences.
        proof: how a phrase is proven.
        extension: how further rows of a proven phrase are found.
        ratio: how a mask ratio is chosen.
        shown: what people are shown.
    """

    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    decode: DecodeConfig | None = None
    batch_size: int = 32
    seed: int = 0
    false_alarm_rate: float = 0.01
    learnt_only: bool = False
    # Few rows plant a backdoor, and they could be among these.
    set_aside_share: float = 0.05
    # Nothing is looked for in them, and a picture that was not recognised leaves such a row.
    text_rows_share: float = 0.05
    phrases: PhrasesConfig = field(default_factory=PhrasesConfig)
    tokens: RecurrenceConfig = field(default_factory=RecurrenceConfig)
    patterns: PatternsConfig = field(default_factory=PatternsConfig)
    copies: CopiesConfig = field(default_factory=CopiesConfig)
    corners: CornersConfig = field(default_factory=CornersConfig)
    unasked: UnaskedConfig = field(default_factory=UnaskedConfig)
    sentences: SentencesConfig = field(default_factory=SentencesConfig)
    proof: ProofConfig = field(default_factory=ProofConfig)
    extension: ExtensionConfig = field(default_factory=ExtensionConfig)
    ratio: RatioConfig = field(default_factory=RatioConfig)
    shown: ShownConfig = field(default_factory=ShownConfig)

    @classmethod
    def of(
        cls,
        *,
        mask_ratio: float | None = None,
        candidates: int | None = None,
        probes: int | None = None,
        seed: int = 0,
        batch_size: int = 32,
        **changes: Any,
    ) -> AuditConfig:
        """The settings of `disp audit`, scoring included.

        Args:
            mask_ratio: largest part of the visual tokens that is masked at once; the usual one if None.
            candidates: salient tokens that are masked one at a time; as many as usual if None.
            probes: Hutchinson probes of the saliency score; as many as usual if None.
            seed: seed of probes, draws and decoding.
            batch_size: assistant turns a pass of scoring and of decoding.
            changes: further fields.

        Raises:
            DispError: a value is out of range.
        """
        saliency = SaliencyConfig.of(probes=probes, alone=False, seed=seed)
        scoring = ScoringConfig.of(saliency, mask_ratio=mask_ratio, candidates=candidates, batch_size=batch_size)
        return cls(scoring=scoring, batch_size=batch_size, seed=seed, **changes)

    def __post_init__(self) -> None:
        if not 0 < self.false_alarm_rate < 1:
            raise DispError(f"false_alarm_rate must be in (0, 1), got {self.false_alarm_rate}")
        check_counts(self, "batch_size")
        check_shares(self, "set_aside_share", "text_rows_share")
        self.scoring.check_suspicion("an audit")
