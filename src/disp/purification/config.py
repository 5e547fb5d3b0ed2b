"""How a dataset is purified."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from disp.data.sample import IMAGE_PLACEHOLDER, Sample, Turn
from disp.decoding.config import DecodeConfig
from disp.decoding.llada import LladaConfig
from disp.decoding.profiles import ProfileName, profiled
from disp.decoding.samplers import decode_config, own_settings
from disp.errors import DispError, check_counts, check_shares, unknown_name
from disp.models.interface import MDLM
from disp.suspicion.config import MASK_RATIO, SaliencyConfig, ScoringConfig
from disp.suspicion.masking import Rounding, Substitute

# What the scripts of DiSP's authors (arXiv 2602.22246) set, beside their saliency.
PUBLISHED_RATIO, PUBLISHED_SLOTS, PUBLISHED_QUESTION = 0.3, 32, "Describe this image in detail."


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
        rounding: "up" masks ⌈ρN⌉ tokens of N, "down" ⌊ρN⌋.
        question: what is asked about every picture instead of the row's own question; None for that.
        first_only: rewrite the first answer of each row alone.
        substitute: what a masked token becomes; see `disp.suspicion.masking.hide`.
    """

    mode: Literal["all", "selective", "random"] = "selective"
    mask_ratio: float = MASK_RATIO
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    decode: DecodeConfig | None = None
    batch_size: int = 32
    seed: int = 0
    rounding: Rounding = "up"
    question: str | None = None
    first_only: bool = False
    substitute: Substitute = "mask"

    def __post_init__(self) -> None:
        if self.substitute not in get_args(Substitute):
            raise unknown_name("substitute of a masked token", self.substitute, get_args(Substitute))
        if self.rounding not in get_args(Rounding):
            raise unknown_name("rounding", self.rounding, get_args(Rounding))
        if self.question is not None and not (self.question.strip() and self.first_only):
            raise DispError("one question for all rows needs a text, and first_only: later turns follow another one")
        if self.mode not in ("all", "selective", "random"):
            raise DispError(f"mode must be 'all', 'selective' or 'random', got {self.mode!r}")
        check_shares(self, "mask_ratio")
        check_counts(self, "batch_size")
        if self.mode == "selective":
            self.scoring.check_suspicion("mode 'selective'")

    @classmethod
    def published(cls, model: MDLM | None = None, *, seed: int = 0, **changes: Any) -> PurifyConfig:
        """The settings of the scripts of DiSP's authors, arXiv 2602.22246.

        Every row, its first answer alone, under one question; ⌊0.3 N⌋ of the N tokens that stand for the picture,
        newline vectors included; 32 slots in 32 steps, in one block. See `SaliencyConfig.published`.

        Args:
            model: who decodes, for what else its decoding needs, such as a stop sequence; None for none of it.
            seed: seed of probes and decoding.
            changes: fields that are to be otherwise.
        """
        slots: dict[str, Any] = {"gen_length": PUBLISHED_SLOTS, "steps": PUBLISHED_SLOTS, "sampler": "llada"}
        decode = decode_config(**slots) if model is None else own_settings(model, block_length=PUBLISHED_SLOTS, **slots)
        if isinstance(decode, LladaConfig):
            decode = replace(decode, threshold=None)  # one slot a step, however sure a model is of others
        saliency = SaliencyConfig.published(seed=seed)
        settings: dict[str, Any] = {
            "mode": "all",
            "mask_ratio": PUBLISHED_RATIO,
            "rounding": "down",
            "question": PUBLISHED_QUESTION,
            "first_only": True,
            "scoring": ScoringConfig(saliency=saliency, gen_length=PUBLISHED_SLOTS, block_length=PUBLISHED_SLOTS),
            "decode": decode,
            "seed": seed,
        }
        return cls(**(settings | changes))

    def with_profile(self, model: MDLM, profile: ProfileName, substitute: Substitute) -> PurifyConfig:
        """The same with a profile of `disp.decoding.profiles`, and with what a masked token becomes."""
        decode = profiled(self.decode or own_settings(model), profile)
        return replace(self, decode=decode, substitute=substitute)

    def asked(self, sample: Sample) -> Sample:
        """What is asked about a sample: its own turns, or the first alone, or one question about its first pictures."""
        if not self.first_only:
            return sample
        first = sample.turns[0]
        if self.question is not None:
            shown = f"{IMAGE_PLACEHOLDER}\n" * first.prompt.count(IMAGE_PLACEHOLDER)
            first = Turn(shown + self.question, first.response)
        return replace(sample, turns=(first,), images=sample.queries[0].images)
