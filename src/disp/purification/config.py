"""How a dataset is purified."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from disp.decoding.config import DecodeConfig
from disp.errors import DispError
from disp.suspicion.config import MASK_RATIO, ScoringConfig


@dataclass(frozen=True)
class PurifyConfig:
    """How a dataset is purified.

    Attributes:
        mode: which answers are rewritten: "all", "selective" or "random" (all, with random masks).
        mask_ratio: share of the visual tokens that "all" and "random" mask. What "selective" masks is what the answer
            was found to hang on.
        scoring: how salient tokens and suspicious answers are found.
        decode: how answers are regenerated; the model's own settings if None.
        batch_size: assistant turns a pass of the rewriting.
        seed: seed of random masks and decoding.
    """

    mode: Literal["all", "selective", "random"] = "selective"
    mask_ratio: float = MASK_RATIO
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    decode: DecodeConfig | None = None
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("all", "selective", "random"):
            raise DispError(f"mode must be 'all', 'selective' or 'random', got {self.mode!r}")
        if not 0 <= self.mask_ratio <= 1:
            raise DispError(f"mask_ratio must be in [0, 1], got {self.mask_ratio}")
        if self.batch_size < 1:
            raise DispError(f"batch_size must be at least 1, got {self.batch_size}")
