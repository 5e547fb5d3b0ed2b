"""Answers to many queries, shared among workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from disp.data.sample import Query
from disp.decoding.config import DecodeConfig
from disp.decoding.generate import answered
from disp.models.interface import MDLM
from disp.scale.workers import ALONE, Workers

# What answers the queries of a batch, one text each.
Answer = Callable[[MDLM, Sequence[Query]], list[str]]


def generate_shared(
    model: MDLM,
    queries: Sequence[Query],
    config: DecodeConfig | None = None,
    *,
    seed: int = 0,
    batch_size: int = 32,
    answer: Answer | None = None,
    workers: Workers = ALONE,
    file: Path | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """`disp.decoding.generate.generate`, by whatever workers there are.

    Args:
        model: the MDLM.
        queries: what to answer, with keys of their own; their responses are not read.
        config: the sampler's config; the model's own settings if None.
        seed: seed of random remasking and sampling.
        batch_size: queries a pass.
        answer: what answers a batch where that is not the model alone; ``config`` is not read then.
        workers: who does it.
        file: JSONL file for answers that are finished, which several workers need.
        progress: called with the number of queries finished after each batch.

    Returns:
        One text a query.
    """
    found: dict[str, str] = {}
    workers.work(
        model,
        queries,
        partial(answer_batch, answer=answer or partial(answered, config=config, seed=seed)),
        size=batch_size,
        file=file,
        keep=lambda row: found.update({row["key"]: row["answer"]}),
        progress=progress,
    )
    return [found[query.key] for query in queries]


def answer_batch(model: MDLM, batch: Sequence[Query], *, answer: Answer) -> list[dict[str, Any]]:
    """The answers to the queries of one batch, as lines of a file."""
    return [{"key": query.key, "answer": text} for query, text in zip(batch, answer(model, batch), strict=True)]
