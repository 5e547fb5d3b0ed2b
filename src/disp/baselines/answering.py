"""Answering under a rival defence: users at test time, or the prompts of a fine-tuning set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from disp.baselines.config import BaselineConfig, Defended
from disp.baselines.interface import Answering
from disp.baselines.saving import left, save
from disp.baselines.table import DEFENCES
from disp.data.dataset import Dataset
from disp.data.sample import Query, Sample, queries_of, unanswered
from disp.decoding.config import DecodeConfig
from disp.decoding.generate import Encode, answered, generate
from disp.errors import DispError
from disp.models.interface import MDLM, Prefix
from disp.progress import ProgressBar
from disp.scale.workers import ALONE, Workers


def answer_under(
    model: MDLM,
    queries: Sequence[Query],
    config: BaselineConfig,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Answer each query under a defence that answers.

    Args:
        model: the MDLM.
        queries: what to answer; their own responses are not read.
        config: see `BaselineConfig`.
        progress: called with the number of queries finished after each batch.

    Returns:
        One text a query; it depends neither on the batch nor on its size.

    Raises:
        DispError: the defence is a filter, or the model does not show what it needs.
    """
    return generate(
        model,
        queries,
        config.decode,
        encode=encoder(config),
        seed=config.seed,
        batch_size=config.batch_size,
        progress=progress,
    )


def encoder(config: BaselineConfig) -> Encode:
    """What the model is shown of a batch under a defence that answers.

    Raises:
        DispError: the defence is a filter.
    """
    encode = answering_defence(config.defence).encode
    return partial(_encode, encode=encode, parameters=config.parameters, seed=config.seed)


def _encode(
    model: MDLM,
    batch: Sequence[Query],
    *,
    encode: Callable[[MDLM, Sequence[Query], Any, int], Prefix],
    parameters: Any,
    seed: int,
) -> Prefix:
    return encode(model, batch, parameters, seed)


def answering_defence(name: str) -> Answering:
    """A defence of the table, which must be one that answers.

    Raises:
        DispError: it is a filter.
    """
    defence = DEFENCES[name]
    if not isinstance(defence, Answering):
        raise DispError(f"{name} filters fine-tuning sets and answers nothing; run it on a set (disp baseline)")
    return defence


def answer_anew(
    model: MDLM,
    dataset: Dataset,
    config: BaselineConfig,
    out: Path,
    *,
    workers: Workers = ALONE,
    progress: ProgressBar,
) -> Defended:
    """The set answered anew under a defence, written to ``out``; see `disp.baselines.run.run_baseline`.

    Samples without a picture stay as they are; later turns see the new answers of the earlier ones.
    """
    chosen = [sample for sample in dataset.samples if sample.images]
    step = partial(response_rows, encode=encoder(config), decode=config.decode, seed=config.seed)
    answers: dict[str, str] = {}
    with progress("answering", len(queries_of(chosen))) as advance:
        for turn in range(max((len(sample.turns) for sample in chosen), default=0)):
            workers.work(
                model,
                unanswered(chosen, turn, answers),
                step,
                size=config.batch_size,
                file=out / "responses.jsonl",
                keep=lambda row: answers.update({row["key"]: row["response"]}),
                progress=advance,
            )
    again = {sample.id for sample in chosen}
    rewritten = [
        sample.with_responses([answers[key] for key in sample.keys]) if sample.id in again else sample
        for sample in dataset.samples
    ]
    result = left(dataset, rewritten, out)
    if workers.leads:
        save(result, dataset, _old_and_new(dataset.samples, rewritten), out)
    return Defended(result, {}, (), tuple(sample.id for sample in chosen), "")


def response_rows(
    model: MDLM, batch: Sequence[Query], *, encode: Encode, decode: DecodeConfig | None, seed: int
) -> list[dict[str, Any]]:
    """The answers to the queries of one batch, as lines of ``responses.jsonl``."""
    texts = answered(model, batch, decode, encode=encode, seed=seed)
    return [{"key": query.key, "response": text} for query, text in zip(batch, texts, strict=True)]


def _old_and_new(before: Sequence[Sample], after: Sequence[Sample]) -> Iterator[Mapping[str, Any]]:
    """One line of ``scores.jsonl`` a sample."""
    for old, new in zip(before, after, strict=True):
        yield {
            "id": old.id,
            "rewritten": bool(old.images),
            "old": [turn.response for turn in old.turns],
            "new": [turn.response for turn in new.turns],
        }
