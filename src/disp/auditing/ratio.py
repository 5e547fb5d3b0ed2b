"""Choosing the mask ratio ρ from the audit itself, without clean data or labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from disp.data.sample import Query, batches
from disp.draws import generator
from disp.models.interface import MDLM
from disp.purification.masking import mask_top
from disp.purification.purify import Evidence, saliency_of
from disp.purification.support import counterfactual_scores, suspicion_of
from disp.purification.threshold import LEAST_SUSPICION

RATIOS = (0.01, 0.02, 0.04, 0.06, 0.09, 0.14, 0.2, 0.3)
# Of ratios that do as well as the best but for this much, the smallest is chosen: it costs least of the picture.
TOLERANCE = 0.02
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
) -> RatioChoice:
    """The ratio at which masking salient tokens replaces most of what is suspicious and least of anything else.

    It maximises the product of `RatioChoice.flipped` and `RatioChoice.kept`.

    Args:
        model: the model under audit.
        suspicious: turns with an image whose answers were flagged, at least one.
        others: turns with an image of samples that were not, at least one.
        evidence: saliency of every turn.
        ratios: what to try, in growing order.
        subset: how many turns of either kind are looked at, at one pass a ratio.
        least: nats by which another answer must win to replace the given one.
        batch_size: turns a pass.
        seed: seed of the subset.
        progress: called with the number of ratios finished.
    """
    draw = generator(seed, "mask ratio")
    groups = [[group[index] for index in draw.permutation(len(group))[:subset]] for group in (suspicious, others)]
    flipped, kept = [], []
    for ratio in ratios:
        shares = [_flipped(model, group, evidence, ratio, least, batch_size) for group in groups]
        flipped.append(shares[0])
        kept.append(1 - shares[1])
        progress(1)
    worth = [each * other for each, other in zip(flipped, kept, strict=True)]
    first = next(index for index, value in enumerate(worth) if value >= max(worth) - TOLERANCE)
    return RatioChoice(ratios[first], tuple(ratios), tuple(flipped), tuple(kept))


def _flipped(
    model: MDLM, queries: Sequence[Query], evidence: Mapping[str, Evidence], ratio: float, least: float, batch_size: int
) -> float:
    """The share of given answers that another one replaces with this share of the most salient tokens masked."""
    total = 0
    for batch in batches(queries, batch_size):
        prefix = model.encode(batch)
        response = model.encode_responses([query.response for query in batch], model.gen_length)
        top = mask_top(saliency_of(batch, prefix.visual_mask, evidence), prefix.visual_mask, ratio)
        scored = counterfactual_scores(model, prefix, response.to(prefix.embeds.device), top[:, None])
        total += int((suspicion_of(*scored) > least).sum())
    return total / len(queries)
