"""Which sets of visual tokens the counterfactual test masks, one at a time."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from disp.suspicion.config import ScoringConfig


def candidate_ranks(visual: int, config: ScoringConfig) -> list[range]:
    """The ranks that each set of `candidate_sets` holds, in its order, for a row with this many visual tokens."""
    if visual == 0:
        return []
    singles = [range(index, index + 1) for index in range(min(config.candidates, visual))]
    size = 1
    while 2 * size <= config.mask_ratio * visual:
        size *= 2
    half = max(1, size // 2)
    halves = config.half_slices * half  # the rank at which whole slices begin
    edges = [*range(0, halves, half), *range(halves, int(config.sliced_share * visual), size)]
    edges.append(edges[-1] + (size if edges[-1] >= halves else half))
    slices = [range(start, min(stop, visual)) for start, stop in pairwise(edges) if start < visual]
    return singles + [ranks for ranks in slices if ranks not in singles]


def candidate_sets(scores: Tensor, visual_mask: Tensor, config: ScoringConfig) -> Tensor:
    """The most salient tokens one by one, then slices of the ranking, each of which is masked at once.

    A trigger that fits one token is found by a single, one that covers several by a slice. Where a model is sure of a
    planted answer its gradients are small and a trigger may rank low; so slices go down to ``sliced_share`` of all
    tokens. Each holds at most ``mask_ratio`` of them, and at the top of the ranking half as many: a larger part of what
    is most salient takes so much of the picture that honest answers flip too.

    Args:
        scores: float ``[B, P]``, saliency at visual tokens.
        visual_mask: bool ``[B, P]``.
        config: how many singles, and how large slices are.

    Returns:
        bool ``[B, M, P]``, singles first. M is at least 1 and that of the row with the most visual tokens; the others,
        whose sets are those that they would have alone, end with empty ones.
    """
    each = [candidate_ranks(visual, config) for visual in visual_mask.sum(-1).tolist()]
    most = max(map(len, each)) or 1
    bounds = torch.tensor(
        [[(ranks.start, ranks.stop) for ranks in sets] + [(0, 0)] * (most - len(sets)) for sets in each]
    )
    start, stop = bounds.to(scores.device)[..., None].unbind(2)  # [B, M, 1] each
    # Place of each position in the row's ranking; non-visual positions come last and are struck out below.
    rank = scores.masked_fill(~visual_mask, -torch.inf).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    rank = rank[:, None]
    return (rank >= start) & (rank < stop) & visual_mask[:, None]
