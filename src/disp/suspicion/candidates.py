"""Which sets of visual tokens the counterfactual test masks, one at a time, and which of them only if another moves.

Sets that lie in a larger one are tried where the larger one moves an answer, and are passed over where it does not:
most answers of a set are honest, and nothing moves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from disp.suspicion.config import ScoringConfig


def candidate_ranks(visual: int, config: ScoringConfig) -> list[range]:
    """The ranks that each set of `candidates_of` holds, in its order, for a row with this many visual tokens."""
    singles = [range(index, index + 1) for index in range(min(config.candidates, visual))]
    return singles + [ranks for ranks in _slices(visual, config) if ranks not in singles]


def screen_ranks(visual: int, config: ScoringConfig) -> list[range]:
    """The ranks that are masked at once to see whether a slice in them needs to be looked at: none without a screen.

    All whole slices together, then either half of them, down to two slices. The half slices are looked at in any case.
    """
    if config.screen is None:
        return []
    found: list[range] = []

    def halve(slices: Sequence[range]) -> None:
        if len(slices) > 1:
            found.append(range(slices[0].start, slices[-1].stop))
            halve(slices[: (len(slices) + 1) // 2])
            halve(slices[(len(slices) + 1) // 2 :])

    halve(_slices(visual, config)[config.half_slices :])
    return found


def parents_of(sets: Sequence[range]) -> list[int]:
    """For each of some ranks, singles first, the index of the smallest others that hold them, -1 where none do.

    The most salient token waits for no other set: where an answer names several things, masking the trigger's
    neighbours in the ranking as well may make the model unsure, and nothing wins.
    """
    parents: list[int] = []
    for own in sets:
        around = [
            index
            for index, other in enumerate(sets)
            if len(other) > len(own) and other.start <= own.start and own.stop <= other.stop
        ]
        parents.append(min(around, key=lambda index: len(sets[index]), default=-1))
    return [-1, *parents[1:]] if parents else []


def _slices(visual: int, config: ScoringConfig) -> list[range]:
    """The slices of the ranking of a row with this many visual tokens, half slices first."""
    if visual == 0:
        return []
    size = 1
    while 2 * size <= config.mask_ratio * visual:
        size *= 2
    half = max(1, size // 2)
    halves = config.half_slices * half  # the rank at which whole slices begin
    edges = [*range(0, halves, half), *range(halves, int(config.sliced_share * visual), size)]
    edges.append(edges[-1] + (size if edges[-1] >= halves else half))
    return [range(start, min(stop, visual)) for start, stop in pairwise(edges) if start < visual]


@dataclass(frozen=True)
class Candidates:
    """The sets of visual tokens that are masked for each row of a batch.

    Attributes:
        sets: bool ``[B, M, P]``, the candidates, see `candidates_of`.
        screens: bool ``[B, S, P]``, larger sets that hold several of them, the largest first.
        parents: int64 ``[B, M + S]``, which set holds each one, counted over candidates and screens; -1 for none.
    """

    sets: Tensor
    screens: Tensor
    parents: Tensor


def candidates_of(scores: Tensor, visual_mask: Tensor, config: ScoringConfig) -> Candidates:
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
        What may be masked for each row, singles first. M is at least 1 and that of the row with the most visual tokens;
        the others, whose sets are those that they would have alone, end with empty ones, of candidates and of screens.
    """
    counts = visual_mask.sum(-1).tolist()
    sets, screens = ([ranks(count, config) for count in counts] for ranks in (candidate_ranks, screen_ranks))
    most, more = max(map(len, sets)) or 1, max(map(len, screens))
    parents = torch.full((len(counts), most + more), -1)
    for row, (own, larger) in enumerate(zip(sets, screens, strict=True)):
        # Where a row's sets stand among those of the batch.
        places = torch.tensor([*range(len(own)), *range(most, most + len(larger))], dtype=torch.int64)
        inside = torch.tensor(parents_of([*own, *larger]), dtype=torch.int64)
        parents[row, places] = torch.where(inside < 0, -1, places[inside])
    # Place of each position in the row's ranking; non-visual positions come last and are struck out below.
    order = scores.masked_fill(~visual_mask, -torch.inf).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    chosen, around = (
        _at_ranks(order, ranks, count) & visual_mask[:, None] for ranks, count in ((sets, most), (screens, more))
    )
    return Candidates(chosen, around, parents.to(scores.device))


def _at_ranks(order: Tensor, each: Sequence[Sequence[range]], count: int) -> Tensor:
    """The positions of each row at some ranks, ``count`` sets of them, bool ``[B, count, P]``; ``order`` ``[B, P]``."""
    bounds = torch.tensor(
        [[(ranks.start, ranks.stop) for ranks in sets] + [(0, 0)] * (count - len(sets)) for sets in each]
    ).view(len(each), count, 2)
    start, stop = bounds.to(order.device)[..., None].unbind(2)  # [B, M, 1] each
    return (order[:, None] >= start) & (order[:, None] < stop)
