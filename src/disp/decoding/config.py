"""What every sampler takes and gives: the base of the samplers' configs, and decoded responses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from disp.errors import DispError
from disp.models.settings import MOST_SLOTS, check_whole


@dataclass(frozen=True)
class DecodeConfig:
    """How responses are decoded: what all samplers share. Each sampler has a subclass with its own options.

    `disp.decoding.samplers.decode_config` makes the right one of flat settings, `own_settings` that of a model.

    Attributes:
        gen_length: response slots L.
        steps: denoising steps.
        sampler: the sampler's name in `disp.decoding.samplers.SAMPLERS`; fixed by the subclass.
    """

    gen_length: int = 32
    steps: int = 32
    sampler: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if not self.sampler:
            raise TypeError("DecodeConfig is the base of the samplers' configs; call decode_config for one of them")
        check_whole(self.gen_length, "gen_length", most=MOST_SLOTS)
        check_whole(self.steps, "steps")

    @property
    def most_steps(self) -> int:
        """Steps that are made at most."""
        return self.steps

    @property
    def passes_a_step(self) -> int:
        """Forward passes of a step: two with classifier-free guidance."""
        return 1

    @property
    def may_end_early(self) -> bool:
        """Whether a response may need fewer steps than `most_steps`."""
        return True

    @property
    def keeps_prefix(self) -> bool:
        """Whether something that was computed of the prefix is kept from step to step."""
        return False


@dataclass(frozen=True)
class StepConfig(DecodeConfig):
    """What the samplers of models with a mask token share: how much a step computes, and when an answer is done.

    `disp.decoding.profiles` has settings of these under names.

    Attributes:
        open_slots: compute the last layer and the head at the slots that a step may fill, and not at the others: the
            same answers.
        end_early: an answer is done once an end token stands in it and nothing is open before that: the same texts.
        refresh: compute the prompt in every so many steps only, counted from the first one of each block; between them
            its keys and values stay as they are (`MDLM.denoise_slots`). 1 gives the same answers, more gives others
            unless the prompt does not see the answer. None computes it in every step. It does not go with
            ``prefix_cache``, which is a family's own way of the same.
        gap: fill every open slot of the block at once when in each of them the likeliest token's logit is so far above
            the second one's; None to switch off.
    """

    open_slots: bool = False
    end_early: bool = False
    refresh: int | None = None
    gap: float | None = None

    @property
    def keeps_prompt(self) -> bool:
        """Whether keys and values of the prompt are kept from a step to the next by ``refresh``."""
        return self.refresh is not None and self.refresh > 1

    @property
    def looks_closely(self) -> bool:
        """Whether steps go by `MDLM.denoise_slots`."""
        return self.open_slots or self.keeps_prompt

    def is_fresh(self, step: int) -> bool:
        """Whether step ``step`` of a block computes the prompt."""
        return self.refresh is None or step % self.refresh == 0

    def fewer_steps(self, times: int) -> dict[str, Any]:
        """The fields that change where every step commits ``times`` as many tokens, and what they become."""
        return {"steps": -(-self.steps // times)}

    def surer(self, threshold: float) -> dict[str, Any]:
        """The same where also every prediction of this confidence is committed; nothing where it was so before."""
        return {}

    def check_steps(self) -> None:
        """Raise `DispError` where one of these does not fit."""
        if self.refresh is not None and self.refresh < 1:
            raise DispError(f"refresh must be at least 1, got {self.refresh}")
        if self.gap is not None and not self.gap > 0:
            raise DispError(f"gap must be more than 0, got {self.gap}")
        if self.refresh is not None and getattr(self, "prefix_cache", False):
            raise DispError("refresh and prefix_cache keep the prompt in two ways; choose one (prefix_cache=False)")


def check_parts(config: DecodeConfig, *names: str) -> None:
    """Raise `DispError` where an option is neither None nor in (0, 1]."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value <= 1:
            raise DispError(f"{name} must be in (0, 1], got {value}")


@dataclass(frozen=True)
class Decoded:
    """Decoded responses.

    Attributes:
        ids: int64 ``[B, L]``, end tokens after a row's answer where a stop sequence cut it. The sampler "llada" may
            have put its suffix behind the answer: then ``[B, L + len(suffix)]``.
        lengths: int64 ``[B]``, tokens of each answer, the suffix included.
    """

    ids: Tensor
    lengths: Tensor

    @staticmethod
    def whole(ids: Tensor) -> Decoded:
        """Responses that no stop sequence cut: each is as long as the others."""
        return Decoded(ids, ids.new_full((len(ids),), ids.shape[1]))
