"""Decoding with whichever sampler the config names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from disp.data.sample import Query
from disp.decoding.config import DecodeConfig, Decoded
from disp.decoding.samplers import SAMPLERS, own_settings
from disp.halving import fitting
from disp.models.interface import MDLM, Prefix


def decode(
    model: MDLM,
    prefix: Prefix,
    config: DecodeConfig | None = None,
    *,
    keys: Sequence[str] | None = None,
    seed: int = 0,
) -> Tensor:
    """Denoise a batch of responses.

    Which slots are open is a boolean tensor of the sampler's own. Masked visual tokens carry the mask embedding too,
    so reading the open slots off the embeddings, as some published decoders do, would fill image positions.

    Args:
        model: the MDLM.
        prefix: prompts and visual tokens, B rows.
        config: the sampler's config; the model's own settings if None.
        keys: one key a row for random draws; needed where the config draws anything.
        seed: the run's seed.

    Returns:
        int64 ``[B, L]``; what follows a row's first end token is end-of-text padding or undefined. With a suffix,
        ``[B, L + len(suffix)]``.

    Raises:
        DispError: the sampler is not for this model.
    """
    return decode_with_lengths(model, prefix, config, keys=keys, seed=seed).ids


@torch.no_grad()
def decode_with_lengths(
    model: MDLM,
    prefix: Prefix,
    config: DecodeConfig | None = None,
    *,
    keys: Sequence[str] | None = None,
    seed: int = 0,
) -> Decoded:
    """`decode`, which tells besides how long each answer is."""
    config = config or own_settings(model)
    sampler = SAMPLERS[config.sampler]
    sampler.check(model)
    return sampler.decode(model, prefix, config, keys=keys, seed=seed)


def answers_of(
    model: MDLM,
    prefix: Prefix,
    config: DecodeConfig | None = None,
    *,
    keys: Sequence[str] | None = None,
    seed: int = 0,
) -> list[str]:
    """What `decode` returns, as texts."""
    return model.decode_responses(decode(model, prefix, config, keys=keys, seed=seed))


def generate(
    model: MDLM,
    queries: Sequence[Query],
    config: DecodeConfig | None = None,
    *,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Answer each query.

    Args:
        model: the MDLM.
        queries: what to answer; their own responses are not read.
        config: the sampler's config; the model's own settings if None.
        seed: seed of random remasking and sampling.
        batch_size: queries a pass; the answers do not depend on it, and where memory is short it is halved.
        progress: called with the number of queries finished after each batch.

    Returns:
        One text a query.
    """

    def answered(batch: Sequence[Query]) -> list[str]:
        return answers_of(model, model.encode(batch), config, keys=[query.key for query in batch], seed=seed)

    answers: list[str] = []
    for batch, texts in fitting(model, answered, queries, batch_size):
        answers += texts
        progress(len(batch))
    return answers
