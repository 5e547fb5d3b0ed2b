"""How a model is defended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

from disp.auditing.config import AuditConfig
from disp.decoding.names import ProfileName
from disp.errors import check_counts, unknown_name
from disp.purification.names import Preset, Rewrite
from disp.suspicion.masking import Substitute
from disp.training.config import TrainConfig
from disp.training.recipes import recipe

# By which recipe a preset recovers, see `disp.training.recipes`.
RECIPES: dict[Preset, str] = {"published": "disp"}


@dataclass(frozen=True)
class DefenceConfig:
    """How a model is defended.

    Attributes:
        audit: how the dataset is audited.
        training: how the model is fine-tuned on the purified set.
        rounds: how often at most auditing, purification and training are done; a further round is done while the
            re-audit of the recovered model still finds evidence.
        probes: pictures on which the recovered model is asked again, with and without the trigger candidate.
        under_patterns: unflagged samples that found patterns are laid over for the fine-tuning, at most.
        rewrite: "flagged" rewrites what the audit flags, if anything. "all" rewrites every row, whatever is found, at
            the mask ratio of `disp.defence.audited.ratio_for_all`, and leaves out what still says a phrase of its
            findings, or says one anew.
        preset: "published" rewrites every row as the scripts of DiSP's authors do, whatever the audit finds; see
            `PurifyConfig.published`. Their fine-tuning goes with it in `DefenceConfig.published` alone. None rewrites
            as ``rewrite`` says.
        profile: how new answers are decoded, a name of `disp.decoding.profiles.PROFILES`. The audits decode exactly.
        substitute: what a masked token becomes while answers are rewritten, see `disp.suspicion.masking.hide`.
    """

    audit: AuditConfig = field(default_factory=AuditConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    rounds: int = 1
    probes: int = 64
    under_patterns: int = 1000
    rewrite: Rewrite = "flagged"
    preset: Preset | None = None
    profile: ProfileName = "exact"
    substitute: Substitute = "mask"

    def __post_init__(self) -> None:
        check_counts(self, "rounds", "probes")
        check_counts(self, "under_patterns", least=0)
        if self.preset is not None and self.preset not in get_args(Preset):
            raise unknown_name("preset", self.preset, get_args(Preset))
        if self.rewrite not in get_args(Rewrite):
            raise unknown_name("rows to rewrite", self.rewrite, get_args(Rewrite))
        if self.profile not in get_args(ProfileName):
            raise unknown_name("profile", self.profile, get_args(ProfileName))
        if self.substitute not in get_args(Substitute):
            raise unknown_name("substitute of a masked token", self.substitute, get_args(Substitute))

    @classmethod
    def published(cls, *, audit: AuditConfig | None = None, seed: int = 0, **changes: Any) -> DefenceConfig:
        """The settings of the scripts of DiSP's authors, arXiv 2602.22246: every row is rewritten, then their recovery.

        See `PurifyConfig.published` for the rewriting, and the recipe "disp" for the fine-tuning: the projector alone.

        Args:
            audit: how the dataset is audited; as usual if None.
            seed: seed of the audit, where none is given, and of the fine-tuning.
            changes: fields that are to be otherwise.
        """
        settings: dict[str, Any] = {"preset": "published", "training": recipe(RECIPES["published"], seed=seed)}
        return cls(audit=AuditConfig.of(seed=seed) if audit is None else audit, **(settings | changes))

    @property
    def rewrites_all(self) -> bool:
        """Whether every row is rewritten, whatever the audit finds."""
        return self.preset is not None or self.rewrite == "all"
