"""Options of what rests on saliency: scoring, rewriting, audits, and plans of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cyclopts import Parameter

from disp.commands.options import BatchSize, Flag
from disp.decoding.names import ProfileName
from disp.purification.names import Mode, Preset
from disp.suspicion.config import SCORING_PROBES, SaliencyConfig, Score, ScoringConfig

if TYPE_CHECKING:
    from disp.auditing.config import AuditConfig
    from disp.models.interface import MDLM
    from disp.purification.config import PurifyConfig
    from disp.suspicion.masking import Substitute


@Parameter(name="*")
@dataclass(frozen=True)
class Estimating:
    """How saliency is estimated.

    Attributes:
        score: All directions alike, or the direction in which masking moves a token.
        probes: Hutchinson probes: 8 for isotropic and 16 for directional if not given.
    """

    score: Score = "isotropic"
    probes: int | None = None

    def config(self, seed: int, batch_size: int) -> ScoringConfig:
        """The settings that were asked for."""
        saliency = SaliencyConfig.of(self.score, probes=self.probes, seed=seed)
        return ScoringConfig(saliency=saliency, batch_size=batch_size)


@Parameter(name="*")
@dataclass(frozen=True)
class Rewriting:
    """How answers are rewritten.

    Attributes:
        mode: Rewrite the answers that lose their support under masking (selective, if not given), all of them, or all
            with random masks.
        mask_ratio: Share of the visual tokens that "all" and "random" mask, and that "selective" masks at most at once;
            0.06 if not given.
        candidates: Salient tokens that "selective" masks one at a time; 4 if not given.
        score: The saliency score: isotropic if not given.
        probes: Hutchinson probes: 4 if not given; where the ranking alone decides ("all") 8 for isotropic, 16 for
            directional.
        steps: Denoising steps of the new answers; the model's own if not given.
        threshold: Confidence at which a token is committed early; the model's own if not given.
        profile: How much a step of decoding computes: exact, fast or fastest; docs/method.md says what each changes.
        drop_masked: Leave masked visual tokens out of the sequence, instead of showing the mask in their place: another
            defence, and a faster one.
        batch_size: Assistant turns in one pass.
        preset: All of these as the scripts of DiSP's authors have them ("published"); --mask-ratio, --probes,
            --profile, --drop-masked and --batch-size win over it, the others do not go with it.
    """

    mode: Mode | None = None
    mask_ratio: float | None = None
    candidates: int | None = None
    score: Score | None = None
    probes: int | None = None
    steps: int | None = None
    threshold: float | None = None
    profile: ProfileName = "exact"
    drop_masked: Flag = False
    batch_size: BatchSize = 32
    preset: Preset | None = None

    def config(self, model: MDLM, seed: int, batch_size: int) -> PurifyConfig:
        """The settings that were asked for; ``model`` says how it decodes where nothing was."""
        from disp.decoding.samplers import own_settings
        from disp.purification.config import PurifyConfig

        if self.preset is not None:
            return self._published(model, seed, batch_size)

        return PurifyConfig.of(
            self.mode or "selective",
            mask_ratio=self.mask_ratio,
            candidates=self.candidates,
            score=self.score or "isotropic",
            probes=self.probes,
            decode=own_settings(model, profile=self.profile, steps=self.steps, threshold=self.threshold),
            batch_size=batch_size,
            seed=seed,
            substitute=self._substitute,
        )

    @property
    def _substitute(self) -> Substitute:
        return "left out" if self.drop_masked else "mask"

    def _published(self, model: MDLM, seed: int, batch_size: int) -> PurifyConfig:
        from disp.errors import DispError
        from disp.purification.config import PurifyConfig

        for name in ("mode", "candidates", "score", "steps", "threshold"):
            if getattr(self, name) is not None:
                raise DispError(f"--{name} does not go with --preset published, which sets it; leave one of them out")
        ratio = {} if self.mask_ratio is None else {"mask_ratio": self.mask_ratio}
        found = PurifyConfig.published(model, seed=seed, batch_size=batch_size, probes=self.probes, **ratio)
        return found.with_profile(model, self.profile, self._substitute)


@Parameter(name="*")
@dataclass(frozen=True)
class PlannedRewriting:
    """What a plan has to know of audit and purification.

    Attributes:
        mode: Which answers are rewritten.
        mask_ratio: Share of the visual tokens that are masked; in "selective" the most that is masked at once.
        candidates: Salient tokens that are masked one at a time.
        probes: Hutchinson probes: as many as `disp purify` takes in this mode, if not given.
        batch_size: Assistant turns in one pass.
    """

    mode: Mode = "selective"
    mask_ratio: float = ScoringConfig.mask_ratio
    candidates: int = ScoringConfig.candidates
    probes: int | None = None
    batch_size: int = 32

    def config(self) -> PurifyConfig:
        """The settings that were asked for."""
        from disp.purification.config import PurifyConfig

        return PurifyConfig.of(
            self.mode,
            mask_ratio=self.mask_ratio,
            candidates=self.candidates,
            probes=self.probes,
            batch_size=self.batch_size,
        )


@Parameter(name="*")
@dataclass(frozen=True)
class Auditing:
    """How a dataset is audited.

    Attributes:
        mask_ratio: Largest part of the visual tokens that is masked at once, as a share of them all.
        candidates: Salient tokens that are masked one at a time.
        probes: Hutchinson probes of the saliency score.
        false_alarm_rate: Accepted chance of a wrong "poisoned" verdict.
        learnt_only: Count what pictures have in common only if the model has learnt it: for a recovered model.
        batch_size: Assistant turns in one pass of the audit.
    """

    mask_ratio: float = ScoringConfig.mask_ratio
    candidates: int = ScoringConfig.candidates
    probes: int = SCORING_PROBES
    false_alarm_rate: float = 0.01
    learnt_only: Flag = False
    batch_size: BatchSize = 32

    def config(self, seed: int, batch_size: int, *, text_rows: bool = False) -> AuditConfig:
        """The settings that were asked for; ``text_rows`` decides however many rows have no picture."""
        from disp.auditing.config import AuditConfig

        return AuditConfig.of(
            mask_ratio=self.mask_ratio,
            candidates=self.candidates,
            probes=self.probes,
            batch_size=batch_size,
            seed=seed,
            false_alarm_rate=self.false_alarm_rate,
            learnt_only=self.learnt_only,
            text_rows_share=1.0 if text_rows else AuditConfig.text_rows_share,
        )


ESTIMATING, REWRITING, PLANNED_REWRITING, AUDITING = Estimating(), Rewriting(), PlannedRewriting(), Auditing()
