"""Decoding with whichever sampler the config names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from disp.data.sample import Query
from disp.decoding.config import DecodeConfig, Decoded
from disp.decoding.samplers import SAMPLERS, own_settings
from disp.halving import fitting
from disp.models.interface import MDLM, Prefix

# What the model is shown of the queries of a batch, a row each.
Encode = Callable[[MDLM, Sequence[Query]], Prefix]


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
    """`decode`, which tells besides how long each answer is.

    Args:
        model: see `decode`, as the rest.
        prefix: B rows.
        config: of the sampler.
        keys: one a row.
        seed: of the run.

    Returns:
        ``ids`` int64 ``[B, L]`` and ``lengths`` int64 ``[B]``.

    Raises:
        DispError: the sampler is not for this model.
    """
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
    """What `decode` returns, as texts.

    Args:
        model: see `decode`, as the rest.
        prefix: B rows.
        config: of the sampler.
        keys: one a row.
        seed: of the run.

    Returns:
        B texts, without special tokens; see `disp.models.interface.MDLM.decode_responses`.

    Raises:
        DispError: the sampler is not for this model.
    """
    return model.decode_responses(decode(model, prefix, config, keys=keys, seed=seed))


def as_they_are(model: MDLM, batch: Sequence[Query]) -> Prefix:
    """The prefix of queries about which nothing is changed."""
    return model.encode(batch)


def answered(
    model: MDLM,
    batch: Sequence[Query],
    config: DecodeConfig | None = None,
    *,
    encode: Encode = as_they_are,
    seed: int = 0,
) -> list[str]:
    """The answers to the queries of one batch, all at once; see `generate`."""
    return answers_of(model, encode(model, batch), config, keys=[query.key for query in batch], seed=seed)


def generate(
    model: MDLM,
    queries: Sequence[Query],
    config: DecodeConfig | None = None,
    *,
    encode: Encode = as_they_are,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Answer each query.

    Args:
        model: the MDLM.
        queries: what to answer; their own responses are not read.
        config: the sampler's config; the model's own settings if None.
        encode: what the model is shown of a batch, such as pictures with tokens masked; rows do not influence each
            other.
        seed: seed of random remasking and sampling.
        batch_size: queries a pass; where memory is short it is halved. No draw depends on it, but the last digits of a
            prediction may.
        progress: called with the number of queries finished after each batch.

    Returns:
        One text a query.

    Raises:
        DispError: the sampler is not for this model, or not even one query fits into memory; ``encode`` may raise
            others.
    """
    step = partial(answered, model, config=config, encode=encode, seed=seed)
    answers: list[str] = []
    for batch, texts in fitting(model, step, queries, batch_size):
        answers += texts
        progress(len(batch))
    return answers
