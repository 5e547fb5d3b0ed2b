"""How a dataset is scored and purified."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from disp.decoding.config import DecodeConfig
from disp.errors import DispError
from disp.suspicion.saliency import SaliencyConfig
from disp.suspicion.threshold import LEAST_SUSPICION

# More of them find no more planted answers.
SCORING_PROBES = 4


@dataclass(frozen=True)
class PurifyConfig:
    """How a dataset is purified.

    Attributes:
        mode: which answers are rewritten: "all", "selective" or "random" (all, with random masks).
        mask_ratio: share of the visual tokens that "all" and "random" mask, and largest slice that "selective" tries.
        candidates: salient tokens that "selective" masks one at a time; see `candidate_sets`.
        least_suspicion: nats below which "selective" rewrites nothing: another answer must win clearly.
        saliency: the saliency estimator. The candidates reach far down the ranking, which need not be as exact as
            where the ranking alone decides.
        decode: how answers are regenerated; the model's own settings if None.
        batch_size: assistant turns a pass.
        seed: seed of random masks and decoding.
    """

    mode: Literal["all", "selective", "random"] = "selective"
    mask_ratio: float = 0.06
    candidates: int = 4
    least_suspicion: float = LEAST_SUSPICION
    saliency: SaliencyConfig = field(default_factory=lambda: SaliencyConfig(probes=SCORING_PROBES))
    decode: DecodeConfig | None = None
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("all", "selective", "random"):
            raise DispError(f"mode must be 'all', 'selective' or 'random', got {self.mode!r}")
        if not 0 <= self.mask_ratio <= 1:
            raise DispError(f"mask_ratio must be in [0, 1], got {self.mask_ratio}")
        for name in ("candidates", "batch_size"):
            if getattr(self, name) < 1:
                raise DispError(f"{name} must be at least 1, got {getattr(self, name)}")
