"""Choosing the mask ratio ρ from the audit itself, without clean data or labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from disp.data.sample import Query, batches
from disp.draws import generator
from disp.models.interface import MDLM
from disp.purification.scoring import Evidence, salient_masks, suspicion_under
from disp.purification.threshold import LEAST_SUSPICION

RATIOS = (0.01, 0.02, 0.04, 0.06, 0.09, 0.14, 0.2, 0.3)
# Of ratios that do as well as the best but for this much, the smallest is chosen: it costs least of the picture.
TOLERANCE = 0.02
# Share of the suspicious answers that some ratio must replace.
LEAST_FLIPPED = 0.5
# Turns of either kind that are looked at, at most.
RATIO_TURNS = 64


@dataclass(frozen=True)
class RatioChoice:
    """A mask ratio and what speaks for it.

    Attributes:
        ratio: the chosen ratio.
        ratios: all that were tried.
        flipped: for each, the share of suspicious answers that another one replaces under the mask.
        kept: for each, the share of the other answers that none replaces.
    """

    ratio: float
    ratios: tuple[float, ...]
    flipped: tuple[float, ...]
    kept: tuple[float, ...]


def choose_mask_ratio(
    model: MDLM,
    suspicious: Sequence[Query],
    others: Sequence[Query],
    evidence: Mapping[str, Evidence],
    *,
    ratios: Sequence[float] = RATIOS,
    subset: int = RATIO_TURNS,
    least: float = LEAST_SUSPICION,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> RatioChoice | None:
    """The ratio at which masking salient tokens replaces most of what is suspicious and least of anything else.

    It maximises the product of `RatioChoice.flipped` and `RatioChoice.kept`. None where no ratio replaces half of what
    is suspicious: then it does not hang on what is salient.

    Args:
        model: the model under audit.
        suspicious: turns with an image whose answers were flagged, at least one.
        others: turns with an image of samples that were not, at least one.
        evidence: saliency of every turn.
        ratios: what to try, in growing order.
        subset: how many turns of either kind are looked at, at one pass a ratio and one more.
        least: nats by which another answer must win to replace the given one.
        batch_size: turns a pass.
        seed: seed of the subset.
        progress: called with the number of turns finished.
    """
    draw = generator(seed, "mask ratio")
    groups = [[group[index] for index in draw.permutation(len(group))[:subset]] for group in (suspicious, others)]
    flipped, lost = (_flipped(model, group, evidence, ratios, least, batch_size, progress) for group in groups)
    if max(flipped) < LEAST_FLIPPED:
        return None
    kept = tuple(1 - share for share in lost)
    worth = [each * other for each, other in zip(flipped, kept, strict=True)]
    first = next(index for index, value in enumerate(worth) if value >= max(worth) - TOLERANCE)
    return RatioChoice(ratios[first], tuple(ratios), flipped, kept)


def _flipped(
    model: MDLM,
    queries: Sequence[Query],
    evidence: Mapping[str, Evidence],
    ratios: Sequence[float],
    least: float,
    batch_size: int,
    progress: Callable[[int], None],
) -> tuple[float, ...]:
    """For each ratio the share of given answers that another one replaces with so many salient tokens masked."""
    totals = torch.zeros(len(ratios), dtype=torch.int64)
    for batch in batches(queries, batch_size):
        prefix = model.encode(batch)
        masks = [salient_masks(batch, prefix.visual_mask, evidence, ratio) for ratio in ratios]
        totals += (suspicion_under(model, prefix, batch, torch.stack(masks, dim=1)) > least).sum(0).cpu()
        progress(len(batch))
    return tuple((totals / len(queries)).tolist())
