"""Answering under masking, for people who cannot retrain yet (DiSP at inference: mask, then decode)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import get_args

import torch

from disp.data.sample import Query
from disp.decoding.config import DecodeConfig
from disp.decoding.generate import answers_of, generate
from disp.decoding.samplers import own_settings
from disp.errors import check_counts, check_shares, unknown_name
from disp.evaluation.quality import normalised_words
from disp.halving import fitting
from disp.models.interface import MDLM, Prefix
from disp.suspicion.config import MASK_RATIO, SaliencyConfig
from disp.suspicion.masking import Rounding, mask_top
from disp.suspicion.saliency import saliency
from disp.suspicion.support import check_finite


@dataclass(frozen=True)
class GuardConfig:
    """How inputs are guarded.

    Attributes:
        mask_ratio: share of the visual tokens that is masked, the most salient ones.
        least_agreement: word agreement (F1, in [0, 1]) of the masked and the unmasked answer below which an input
            is flagged.
        saliency: the saliency estimator.
        decode: how answers are decoded; the model's own settings if None.
        batch_size: queries a pass.
        seed: seed of decoding.
        rounding: see `disp.suspicion.masking.mask_top`.
    """

    mask_ratio: float = MASK_RATIO
    least_agreement: float = 0.5
    saliency: SaliencyConfig = field(default_factory=SaliencyConfig)
    decode: DecodeConfig | None = None
    batch_size: int = 32
    seed: int = 0
    rounding: Rounding = "up"

    def __post_init__(self) -> None:
        check_shares(self, "mask_ratio", "least_agreement")
        check_counts(self, "batch_size")
        if self.rounding not in get_args(Rounding):
            raise unknown_name("rounding", self.rounding, get_args(Rounding))


@dataclass(frozen=True)
class Guarded:
    """One guarded answer.

    Attributes:
        answer: the answer under masking.
        unmasked: the answer without masking.
        agreement: word F1 of the two, in [0, 1].
        flagged: whether they agree too little: what the model says hangs on the masked tokens.
    """

    answer: str
    unmasked: str
    agreement: float
    flagged: bool


def guard(
    model: MDLM,
    queries: Sequence[Query],
    config: GuardConfig,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> list[Guarded]:
    """Answer each query with its most salient visual tokens masked, and say where that changes the answer.

    Args:
        model: the MDLM.
        queries: what to answer; a query without an image is answered as it is.
        config: see `GuardConfig`.
        progress: called with the number of queries finished after each batch.

    Raises:
        DispError: the model's numbers overflow.
    """

    def both(batch: Sequence[Query]) -> list[tuple[str, str]]:
        keys = [query.key for query in batch]
        prefix = model.encode(batch)
        hidden = _hidden(model, prefix, keys, config)
        plain, guarded = (
            answers_of(model, each, config.decode, keys=keys, seed=config.seed) for each in (prefix, hidden)
        )
        return list(zip(plain, guarded, strict=True))

    results = []
    for batch, pairs in fitting(model, both, queries, config.batch_size):
        for unmasked, answer in pairs:
            agreement = word_agreement(unmasked, answer)
            results.append(Guarded(answer, unmasked, agreement, agreement < config.least_agreement))
        progress(len(batch))
    return results


def masked_answers(
    model: MDLM,
    queries: Sequence[Query],
    config: GuardConfig,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """The answers of `guard` alone: nothing is answered without masking, and nothing is flagged."""
    return generate(
        model,
        queries,
        config.decode,
        encode=partial(_encode_hidden, config=config),
        seed=config.seed,
        batch_size=config.batch_size,
        progress=progress,
    )


def _encode_hidden(model: MDLM, batch: Sequence[Query], *, config: GuardConfig) -> Prefix:
    return _hidden(model, model.encode(batch), [query.key for query in batch], config)


def _hidden(model: MDLM, prefix: Prefix, keys: Sequence[str], config: GuardConfig) -> Prefix:
    """The prefix with its most salient tokens masked."""
    decode = config.decode or own_settings(model)
    block = getattr(decode, "block_length", None)
    scores = saliency(model, prefix, keys, config.saliency, decode.gen_length, block_length=block)
    check_finite(scores, keys)
    scored = prefix.scored(config.saliency.separators)
    masked = mask_top(scores, scored, config.mask_ratio, rounding=config.rounding)
    with torch.no_grad():
        return prefix.with_masked(masked, model.mask_embedding)


def word_agreement(first: str, second: str) -> float:
    """F1 of the words of two texts as multisets; 1 where both are empty.

    Words are those by which answers are scored: case, punctuation and articles do not count.
    """
    counts = Counter(normalised_words(first)), Counter(normalised_words(second))
    sizes = [counter.total() for counter in counts]
    return 1.0 if not any(sizes) else 2 * (counts[0] & counts[1]).total() / sum(sizes)
