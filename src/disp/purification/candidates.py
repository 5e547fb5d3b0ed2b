"""Which sets of visual tokens the counterfactual test masks, one at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def candidate_sets(scores: Tensor, visual_mask: Tensor, count: int, ratio: float) -> Tensor:
    """The ``count`` most salient tokens one by one, then growing blocks of the most salient ones.

    A trigger that fits one token is found by a single, one that covers several by a block. The blocks hold 2, 4, 8 …
    tokens, up to ``ratio`` of them all: larger ones take so much of the picture that honest answers flip too.

    Args:
        scores: float ``[B, P]``, saliency at visual tokens.
        visual_mask: bool ``[B, P]``.
        count: number of singles.
        ratio: largest block, as a share of the visual tokens of the row with the most.

    Returns:
        bool ``[B, M, P]``, smaller sets first; a row with fewer visual tokens has empty sets, which mask nothing.
    """
    most = int(visual_mask.sum(-1).max())
    # Place of each position in the row's ranking; non-visual positions come last and are struck out below.
    rank = scores.masked_fill(~visual_mask, -torch.inf).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    sets = [rank == index for index in range(max(1, min(count, most)))]
    size = 2
    while size <= ratio * most:
        sets.append(rank < size)
        size *= 2
    return torch.stack([chosen & visual_mask for chosen in sets], dim=1)
