"""Which sets of visual tokens the counterfactual test masks, one at a time."""

from __future__ import annotations

import torch
from torch import Tensor

# Ranks beyond the singles and blocks that are looked at in slices.
SLICED_SHARE = 1 / 3


def candidate_ranks(visual: int, count: int, ratio: float) -> list[range]:
    """The ranks that each set of `candidate_sets` holds, in its order, for a batch with this many visual tokens."""
    ranks = [range(index, index + 1) for index in range(max(1, min(count, visual)))]
    size = 1
    while 2 * size <= ratio * visual:
        size *= 2
        ranks.append(range(size))
    ranks += [range(start, start + size) for start in range(max(count, size), int(SLICED_SHARE * visual), size)]
    return ranks


def candidate_sets(scores: Tensor, visual_mask: Tensor, count: int, ratio: float) -> Tensor:
    """The ``count`` most salient tokens one by one, growing blocks of the most salient ones, then slices of the next.

    A trigger that fits one token is found by a single, one that covers several by a block. The blocks hold 2, 4, 8 …
    tokens, up to ``ratio`` of them all: larger ones take so much of the picture that honest answers flip too. Where a
    model is sure of a planted answer its gradients are small and a trigger may rank low; so the following ranks, up to
    `SLICED_SHARE` of all tokens, are masked too, in slices as large as the largest block. Honest answers hardly hang
    on them.

    Args:
        scores: float ``[B, P]``, saliency at visual tokens.
        visual_mask: bool ``[B, P]``.
        count: number of singles.
        ratio: largest block, as a share of the visual tokens of the row with the most.

    Returns:
        bool ``[B, M, P]``, smaller sets first, then slices; a row with fewer visual tokens has empty sets, which mask
        nothing.
    """
    most = int(visual_mask.sum(-1).max())
    # Place of each position in the row's ranking; non-visual positions come last and are struck out below.
    rank = scores.masked_fill(~visual_mask, -torch.inf).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    sets = [(rank >= ranks.start) & (rank < ranks.stop) for ranks in candidate_ranks(most, count, ratio)]
    return torch.stack([chosen & visual_mask for chosen in sets], dim=1)
