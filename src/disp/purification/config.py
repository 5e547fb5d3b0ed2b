"""How a dataset is purified."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, get_args

from disp.data.sample import IMAGE_PLACEHOLDER, Sample, Turn
from disp.decoding.config import DecodeConfig
from disp.decoding.names import ProfileName
from disp.decoding.profiles import profiled
from disp.decoding.samplers import decode_config, lasting_settings, own_settings
from disp.errors import DispError, check_counts, check_shares, unknown_name
from disp.models.interface import MDLM
from disp.purification.names import Mode
from disp.suspicion.config import MASK_RATIO, SaliencyConfig, Score, ScoringConfig
from disp.suspicion.masking import Rounding, Substitute

# What the scripts of DiSP's authors (arXiv 2602.22246) set, beside their saliency.
PUBLISHED_RATIO, PUBLISHED_SLOTS, PUBLISHED_QUESTION = 0.3, 32, "Describe this image in detail."
# One slot a step, the likeliest token of the surest slot, and every pass over the whole sequence.
_PUBLISHED_DECODING: dict[str, Any] = {
    "temperature": 0.0,
    "remasking": "low_confidence",
    "threshold": None,
    "schedule": None,
    "cfg_scale": 0.0,
    "prefix_cache": False,
}


@dataclass(frozen=True)
class PurifyConfig:
    """How a dataset is purified. `of` makes the settings that go together.

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

    mode: Mode = "selective"
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
        if self.mode not in get_args(Mode):
            raise unknown_name("mode", self.mode, get_args(Mode))
        check_shares(self, "mask_ratio")
        check_counts(self, "batch_size")
        if self.mode == "selective":
            self.scoring.check_suspicion("mode 'selective'")

    @classmethod
    def of(
        cls,
        mode: Mode = "selective",
        *,
        mask_ratio: float | None = None,
        candidates: int | None = None,
        score: Score = "isotropic",
        probes: int | None = None,
        seed: int = 0,
        batch_size: int = 32,
        **changes: Any,
    ) -> PurifyConfig:
        """The settings of `disp purify`, scoring included.

        Args:
            mode: which answers are rewritten.
            mask_ratio: share of the visual tokens that "all" and "random" mask, and that "selective" masks at most at
                once; the usual one if None.
            candidates: salient tokens that "selective" masks one at a time; as many as usual if None.
            score: see `SaliencyConfig`.
            probes: Hutchinson probes; None for as many as the mode needs: more where the ranking alone decides what is
                masked, which is in "all".
            seed: seed of probes, masks and decoding.
            batch_size: assistant turns a pass of scoring and of rewriting.
            changes: further fields.

        Raises:
            DispError: a value is out of range.
        """
        saliency = SaliencyConfig.of(score, probes=probes, alone=mode == "all", seed=seed)
        scoring = ScoringConfig.of(saliency, mask_ratio=mask_ratio, candidates=candidates, batch_size=batch_size)
        ratio = scoring.mask_ratio
        return cls(mode=mode, mask_ratio=ratio, scoring=scoring, batch_size=batch_size, seed=seed, **changes)

    @classmethod
    def published(
        cls,
        model: MDLM | None = None,
        *,
        seed: int = 0,
        batch_size: int = 32,
        probes: int | None = None,
        **changes: Any,
    ) -> PurifyConfig:
        """The settings of the scripts of DiSP's authors, arXiv 2602.22246.

        Every row, its first answer alone, under one question; ⌊0.3 N⌋ of the N tokens that stand for the picture,
        newline vectors included; 32 slots in 32 steps, in one block, greedy. See `SaliencyConfig.published`.

        Args:
            model: who decodes, for how its answers end, such as a stop sequence; None for none of it. Nothing else of
                its own decoding is kept.
            seed: seed of probes and decoding.
            batch_size: assistant turns a pass of scoring and of rewriting.
            probes: Hutchinson probes in place of the published six.
            changes: fields that are to be otherwise.
        """
        ends = lasting_settings({} if model is None else model.generation_defaults, "llada")
        slots: dict[str, Any] = dict.fromkeys(("gen_length", "steps", "block_length"), PUBLISHED_SLOTS)
        decode = decode_config(**ends, **slots, **_PUBLISHED_DECODING)
        saliency = SaliencyConfig.published(seed=seed)
        settings: dict[str, Any] = {
            "mode": "all",
            "mask_ratio": PUBLISHED_RATIO,
            "rounding": "down",
            "question": PUBLISHED_QUESTION,
            "first_only": True,
            "scoring": ScoringConfig(
                saliency=saliency if probes is None else replace(saliency, probes=probes),
                batch_size=batch_size,
                gen_length=PUBLISHED_SLOTS,
                block_length=PUBLISHED_SLOTS,
            ),
            "decode": decode,
            "batch_size": batch_size,
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
