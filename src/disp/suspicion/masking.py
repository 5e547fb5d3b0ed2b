"""Which visual tokens to hide, the most salient ones or as many random ones for comparison, and what they become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from disp.draws import generator
from disp.errors import DispError, unknown_name
from disp.models.interface import Prefix
from disp.suspicion.saliency import rank_tokens

Rounding = Literal["up", "down"]
# What a masked visual token becomes.
Substitute = Literal["mask", "zeros", "mean", "left out"]


def mask_top(scores: Tensor, visual_mask: Tensor, ratio: float, *, rounding: Rounding = "up") -> Tensor:
    """The ``⌈ratio · N⌉`` highest-scoring of each row's N visual tokens; ties go to the earlier position.

    Args:
        scores: float ``[B, P]``.
        visual_mask: bool ``[B, P]``.
        ratio: share of the visual tokens in [0, 1].
        rounding: "down" for ``⌊ratio · N⌋``, as published.

    Returns:
        bool ``[B, P]``, true at visual tokens only: the ``masked`` of `disp.models.interface.Prefix.with_masked`.

    Raises:
        DispError: the ratio is out of range.
    """
    masked = torch.zeros_like(visual_mask)
    order = rank_tokens(scores, visual_mask)
    for row, count in enumerate(mask_counts(visual_mask, ratio, rounding=rounding)):
        masked[row, order[row, :count]] = True
    return masked


def mask_random(
    visual_mask: Tensor, ratio: float, keys: Sequence[str], seed: int, *, rounding: Rounding = "up"
) -> Tensor:
    """As many tokens as `mask_top` hides, drawn at random; a higher ratio hides the same ones and more.

    Args:
        visual_mask: bool ``[B, P]``.
        ratio: share of the visual tokens in [0, 1].
        keys: one key a row; the draw depends on it, the seed and N alone, not on the batch or its padding.
        seed: the run's seed.
        rounding: as of `mask_top`.

    Returns:
        bool ``[B, P]``, true at visual tokens only.

    Raises:
        DispError: the ratio is out of range.
    """
    masked = torch.zeros_like(visual_mask)
    for row, (key, count) in enumerate(zip(keys, mask_counts(visual_mask, ratio, rounding=rounding), strict=True)):
        positions = visual_mask[row].nonzero()[:, 0]
        chosen = torch.from_numpy(generator(seed, "random mask", key).permutation(len(positions))[:count])
        masked[row, positions[chosen.to(positions.device)]] = True
    return masked


def mask_counts(visual_mask: Tensor, ratio: float, *, rounding: Rounding = "up") -> list[int]:
    """``⌈ratio · N⌉``, or ``⌊ratio · N⌋``, for each row of ``visual_mask`` (bool ``[B, P]``) with N visual tokens.

    Upwards the ratio counts as what it is written as. Downwards the product is cut as floating point has it, which is
    what the published script does: of 0.29 · 100 that is 28.

    Raises:
        DispError: the ratio is out of range.
    """
    if not 0 <= ratio <= 1:
        raise DispError(f"mask ratio must be in [0, 1], got {ratio}")
    counts = visual_mask.sum(-1).tolist()
    if rounding == "down":
        return [math.floor(ratio * count) for count in counts]
    # 0.07 · 100 is a little more than 7 in floating point, and must not become 8.
    return [math.ceil(ratio * count * (1 - 1e-12)) for count in counts]


def hide(prefix: Prefix, masked: Tensor, mask_embedding: Tensor, substitute: Substitute = "mask") -> Prefix:
    """The prefix with some visual tokens hidden.

    Args:
        prefix: B rows.
        masked: bool ``[B, P]``, true at visual tokens or separators only.
        mask_embedding: ``[d]``, the model's own.
        substitute: what a hidden token becomes: "mask", the mask embedding or whatever the family has in its place, as
            DiSP does; "zeros"; "mean", the mean of all visual tokens of its row; "left out", nothing: the sequence
            is shorter, and costs less.

    Raises:
        DispError: there is no such substitute.
        ValueError: ``masked`` is true at another position.
    """
    hidden = prefix.with_masked(masked, mask_embedding)
    if substitute == "mask":
        return hidden
    if substitute == "left out":
        return replace(prefix, attention_mask=prefix.attention_mask & ~masked).packed()
    if substitute == "zeros":
        other = torch.zeros_like(prefix.embeds[:, :1])
    elif substitute == "mean":
        visual = prefix.visual_mask[..., None].to(prefix.embeds.dtype)
        other = (prefix.embeds * visual).sum(1, keepdim=True) / visual.sum(1, keepdim=True).clamp(min=1)
    else:
        raise unknown_name("substitute of a masked token", substitute, get_args(Substitute))
    return replace(prefix, embeds=torch.where(masked[..., None], other, prefix.embeds))
