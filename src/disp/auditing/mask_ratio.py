"""Choosing the mask ratio ρ from the audit itself, without clean data or labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from disp.auditing.config import AuditConfig
from disp.data.sample import Query
from disp.decoding.generate import generate
from disp.draws import generator
from disp.evaluation.quality import rouge_l
from disp.models.interface import MDLM, Prefix
from disp.suspicion.evidence import Evidence, salient_masks


@dataclass(frozen=True)
class RatioChoice:
    """A mask ratio and what speaks for it.

    Attributes:
        ratio: the chosen ratio.
        gentlest: the smallest ratio that purges `RatioConfig.least_purged`. It is enough where rows that still say a
            phrase are left out: the others teach the honest answer, and what is not suspicious keeps most.
        ratios: all that were tried, in growing order.
        purged: for each, the share of suspicious answers that no longer hold their phrase when they are rewritten.
        kept: for each, how much of the other answers rewriting leaves: the mean ROUGE-L F1 of new and given answer, 0
            where the new one says a phrase that the given one does not.
    """

    ratio: float
    gentlest: float
    ratios: tuple[float, ...]
    purged: tuple[float, ...]
    kept: tuple[float, ...]


def choose_mask_ratio(
    model: MDLM,
    suspicious: Sequence[Query],
    others: Sequence[Query],
    evidence: Mapping[str, Evidence],
    planted: Callable[[Query, str], bool],
    config: AuditConfig,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> RatioChoice | None:
    """The ratio at which rewriting every answer would purge most of what is suspicious and change least else.

    Some of both kinds are rewritten under each ratio, and the product of `RatioChoice.purged` and `RatioChoice.kept` is
    maximised. None where no ratio purges `RatioConfig.least_purged` of what is suspicious: then it does not hang on
    what is salient.

    Args:
        model: the model under audit.
        suspicious: turns with an image whose answers were flagged, at least one.
        others: turns with an image of samples that were not, at least one.
        evidence: saliency of every turn.
        planted: whether a new answer to a turn holds a phrase that the model was made to say: that which a suspicious
            one was flagged for, or another that the given answer does not hold.
        config: its ratios, decoding settings, batch size and seed.
        progress: called with the number of ratios that are done with, all of them together.
    """
    ratios, turns = config.ratio.ratios, config.ratio.turns
    draw = generator(config.seed, "mask ratio")
    bad, good = ([group[index] for index in draw.permutation(len(group))[:turns]] for group in (suspicious, others))
    purged: list[float] = []
    kept: list[float] = []
    for ratio in ratios:
        answers = rewritten_answers(model, [*bad, *good], evidence, ratio, config)
        purged.append(sum(not planted(query, answers[query.key]) for query in bad) / len(bad))
        left = (0.0 if planted(each, answers[each.key]) else rouge_l(answers[each.key], each.response) for each in good)
        kept.append(sum(left) / len(good))
        progress(1)
        worth = [each * other for each, other in zip(purged, kept, strict=True)]
        if kept[-1] <= max(worth):
            progress(len(ratios) - len(worth))
            break  # a larger mask keeps no more
    if max(purged) < config.ratio.least_purged:
        return None
    first = next(index for index, value in enumerate(worth) if value >= max(worth) - config.ratio.tolerance)
    gentle = next(index for index, share in enumerate(purged) if share >= config.ratio.least_purged)
    return RatioChoice(ratios[first], ratios[gentle], ratios[: len(worth)], tuple(purged), tuple(kept))


def rewritten_answers(
    model: MDLM, queries: Sequence[Query], evidence: Mapping[str, Evidence], ratio: float, config: AuditConfig
) -> dict[str, str]:
    """The model's answer to each turn with a share of its most salient visual tokens masked.

    Args:
        model: the model under audit.
        queries: the turns.
        evidence: by key, of each of them.
        ratio: the share, in [0, 1].
        config: decoding settings, batch size and seed.

    Returns:
        By key one text.
    """

    def masked(model: MDLM, batch: Sequence[Query]) -> Prefix:
        prefix = model.encode(batch)
        return prefix.with_masked(salient_masks(batch, prefix.visual_mask, evidence, ratio), model.mask_embedding)

    texts = generate(model, queries, config.decode, encode=masked, seed=config.seed, batch_size=config.batch_size)
    return {query.key: text for query, text in zip(queries, texts, strict=True)}
