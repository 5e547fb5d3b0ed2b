"""Choosing the mask ratio ρ from the audit itself, without clean data or labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from disp.data.sample import Query, batches
from disp.decoding.config import DecodeConfig
from disp.decoding.generate import answers_of
from disp.draws import generator
from disp.evaluation.quality import rouge_l
from disp.models.interface import MDLM
from disp.suspicion.scoring import Evidence, salient_masks

RATIOS = (0.01, 0.02, 0.04, 0.06, 0.09, 0.14, 0.2, 0.3)
# Of ratios that do as well as the best but for this much, the smallest is chosen: it costs least of the picture.
TOLERANCE = 0.02
# Share of the suspicious answers that some ratio must replace.
LEAST_PURGED = 0.5
# Turns of either kind that are answered again, at most.
RATIO_TURNS = 48


@dataclass(frozen=True)
class RatioChoice:
    """A mask ratio and what speaks for it.

    Attributes:
        ratio: the chosen ratio.
        ratios: all that were tried, in growing order.
        purged: for each, the share of suspicious answers that no longer hold their phrase when they are rewritten.
        kept: for each, how much of the other answers rewriting leaves: the mean ROUGE-L F1 of new and given answer.
    """

    ratio: float
    ratios: tuple[float, ...]
    purged: tuple[float, ...]
    kept: tuple[float, ...]


def choose_mask_ratio(
    model: MDLM,
    suspicious: Sequence[Query],
    others: Sequence[Query],
    evidence: Mapping[str, Evidence],
    planted: Callable[[Query, str], bool],
    decode: DecodeConfig | None,
    *,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda count: None,
) -> RatioChoice | None:
    """The ratio at which rewriting every answer would purge most of what is suspicious and change least else.

    Some of both kinds are rewritten under each of `RATIOS`, and the product of `RatioChoice.purged` and
    `RatioChoice.kept` is maximised. None where no ratio purges half of what is suspicious: then it does not hang on
    what is salient.

    Args:
        model: the model under audit.
        suspicious: turns with an image whose answers were flagged, at least one.
        others: turns with an image of samples that were not, at least one.
        evidence: saliency of every turn.
        planted: whether an answer to a suspicious turn holds the phrase that it was flagged for.
        decode: how answers are decoded; the model's own settings if None.
        seed: seed of decoding, and of which turns are answered again.
        batch_size: answers a pass.
        progress: called with the number of ratios that are done with, all of `RATIOS` together.
    """
    draw = generator(seed, "mask ratio")
    bad, good = (
        [group[index] for index in draw.permutation(len(group))[:RATIO_TURNS]] for group in (suspicious, others)
    )
    purged: list[float] = []
    kept: list[float] = []
    for ratio in RATIOS:
        answers = rewritten_answers(model, [*bad, *good], evidence, ratio, decode, seed=seed, batch_size=batch_size)
        purged.append(sum(not planted(query, answers[query.key]) for query in bad) / len(bad))
        kept.append(sum(rouge_l(answers[query.key], query.response) for query in good) / len(good))
        progress(1)
        worth = [each * other for each, other in zip(purged, kept, strict=True)]
        if kept[-1] <= max(worth):
            progress(len(RATIOS) - len(worth))
            break  # a larger mask keeps no more
    if max(purged) < LEAST_PURGED:
        return None
    first = next(index for index, value in enumerate(worth) if value >= max(worth) - TOLERANCE)
    return RatioChoice(RATIOS[first], RATIOS[: len(worth)], tuple(purged), tuple(kept))


def rewritten_answers(
    model: MDLM,
    queries: Sequence[Query],
    evidence: Mapping[str, Evidence],
    ratio: float,
    decode: DecodeConfig | None,
    *,
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, str]:
    """By key, the model's answer to each turn with this share of its most salient visual tokens masked."""
    answers: dict[str, str] = {}
    for batch in batches(queries, batch_size):
        prefix = model.encode(batch)
        hidden = prefix.with_masked(salient_masks(batch, prefix.visual_mask, evidence, ratio), model.mask_embedding)
        keys = [query.key for query in batch]
        answers.update(zip(keys, answers_of(model, hidden, decode, keys=keys, seed=seed), strict=True))
    return answers
