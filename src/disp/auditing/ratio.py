"""Choosing the mask ratio ρ from the audit itself, without clean data or labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from disp.data.sample import Query, Sample, batches, queries_of
from disp.draws import generator
from disp.models.interface import MDLM
from disp.purification.masking import mask_random, mask_top
from disp.purification.purify import Evidence, saliency_of
from disp.purification.support import likelihood_gap

RATIOS = (0.01, 0.02, 0.04, 0.06, 0.09, 0.14, 0.2, 0.3)
# Of ratios that separate as well as the best but for this share, the smallest is chosen: it costs least of the picture.
TOLERANCE = 0.1


@dataclass(frozen=True)
class RatioChoice:
    """A mask ratio and what speaks for it.

    Attributes:
        ratio: the chosen ratio.
        ratios: all that were tried.
        separation: for each, how many nats a token more the suspicious answers lose than the others, each less what it
            loses to as many random tokens.
    """

    ratio: float
    ratios: tuple[float, ...]
    separation: tuple[float, ...]


def choose_mask_ratio(
    model: MDLM,
    suspicious: Sequence[Sample],
    others: Sequence[Sample],
    evidence: Mapping[str, Evidence],
    *,
    ratios: Sequence[float] = RATIOS,
    subset: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> RatioChoice:
    """The ratio at which masking salient tokens takes its support from what is suspicious and from nothing else.

    Args:
        model: the model under audit.
        suspicious: samples above the threshold.
        others: samples below it.
        evidence: saliency of every turn.
        ratios: what to try, in growing order.
        subset: how many samples of either kind are looked at.
        batch_size: turns a pass.
        seed: seed of the subset and of random masks.
        progress: called with the number of ratios finished.
    """
    draw = generator(seed, "mask ratio")
    chosen = [
        [group[index] for index in draw.permutation(len(group))[:subset]]
        for group in (
            [sample for sample in suspicious if sample.images],
            [sample for sample in others if sample.images],
        )
    ]
    if not all(chosen):
        raise ValueError("both suspicious samples and others are needed to choose a ratio")
    separation = []
    for ratio in ratios:
        means = [_specific_gap(model, queries_of(group), evidence, ratio, batch_size, seed) for group in chosen]
        separation.append(means[0] - means[1])
        progress(1)
    best = max(separation)
    first = next(index for index, value in enumerate(separation) if value >= best - TOLERANCE * abs(best))
    return RatioChoice(ratios[first], tuple(ratios), tuple(separation))


def _specific_gap(
    model: MDLM, queries: Sequence[Query], evidence: Mapping[str, Evidence], ratio: float, batch_size: int, seed: int
) -> float:
    total = 0.0
    for batch in batches(queries, batch_size):
        prefix = model.encode(batch)
        response = model.encode_responses([query.response for query in batch], model.gen_length)
        response = response.to(prefix.embeds.device)
        top = mask_top(saliency_of(batch, prefix.visual_mask, evidence), prefix.visual_mask, ratio)
        random = mask_random(prefix.visual_mask, ratio, [query.key for query in batch], seed)
        gaps = [likelihood_gap(model, prefix, response, masked, count=2, seed=seed) for masked in (top, random)]
        total += float((gaps[0] - gaps[1]).sum())
    return total / len(queries)
