"""The two complementary masks of LaViDa's training loss."""

from __future__ import annotations

import torch
from torch import Tensor

from disp.diffusion.forward import MIN_RATIO
from disp.models.parts.llava import IGNORED


def complementary_pair(
    labels: Tensor, ratio: Tensor, uniforms: Tensor, fill: int | None = None
) -> tuple[Tensor, Tensor]:
    """The two masks of LaViDa's loss.

    A token is drawn with probability p = (1 - 0.001) t + 0.001, and the one of each row's smallest uniform always. The
    first mask holds the supervised tokens that were drawn, the second the others.

    Args:
        labels: int64 ``[B, T]``, -100 where nothing is supervised.
        ratio: float ``[B]``, t.
        uniforms: float ``[B, T]``, of all positions: the smallest may be at one that is not supervised.
        fill: a token that is never masked nor predicted.

    Returns:
        Masks bool ``[2 B, T]`` and targets int64 ``[2 B, T]``, -100 where nothing is masked: all rows of the first
        mask, then all rows of the second.
    """
    supervised = labels != IGNORED
    if fill is not None:
        supervised &= labels != fill
    probability = ((1 - MIN_RATIO) * ratio.float() + MIN_RATIO)[:, None]
    drawn = uniforms <= torch.maximum(probability, uniforms.min(-1, keepdim=True).values)
    masked = torch.cat((drawn & supervised, ~drawn & supervised))
    return masked, labels.repeat(2, 1).masked_fill(~masked, IGNORED)
