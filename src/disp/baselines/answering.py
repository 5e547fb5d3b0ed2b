"""Answering under a rival defence: users at test time, or the prompts of a fine-tuning set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from disp.baselines.config import BaselineConfig, Defended
from disp.baselines.interface import Answering
from disp.baselines.saving import saved
from disp.baselines.table import DEFENCES
from disp.data.dataset import Dataset
from disp.data.sample import Query, batches, queries_of, unanswered
from disp.decoding.generate import generate
from disp.errors import DispError
from disp.files import append_jsonl, read_finished_jsonl, write_jsonl
from disp.models.interface import MDLM, Prefix
from disp.progress import ProgressBar


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
    defence = answering_defence(config.defence)

    def encode(model: MDLM, batch: Sequence[Query]) -> Prefix:
        return defence.encode(model, batch, config.parameters, config.seed)

    return generate(
        model,
        queries,
        config.decode,
        encode=encode,
        seed=config.seed,
        batch_size=config.batch_size,
        progress=progress,
    )


def answering_defence(name: str) -> Answering:
    """A defence of the table, which must be one that answers.

    Raises:
        DispError: it is a filter.
    """
    defence = DEFENCES[name]
    if not isinstance(defence, Answering):
        raise DispError(f"{name} filters fine-tuning sets and answers nothing; run it on a set (disp baseline)")
    return defence


def answered(
    model: MDLM, dataset: Dataset, defence: Answering, config: BaselineConfig, out: Path, progress: ProgressBar
) -> Defended:
    """The set answered anew under a defence, written to ``out``; see `disp.baselines.run.run_baseline`.

    Samples without a picture stay as they are; later turns see the new answers of the earlier ones.
    """
    file = out / "responses.jsonl"
    answers: dict[str, str] = {row["key"]: row["response"] for row in read_finished_jsonl(file)}
    chosen = [sample for sample in dataset.samples if sample.images]
    with progress("answering", len(queries_of(chosen))) as advance:
        advance(len(answers))
        for turn in range(max((len(sample.turns) for sample in chosen), default=0)):
            for batch in batches(unanswered(chosen, turn, answers), config.batch_size):
                texts = answer_under(model, batch, config)
                rows = [{"key": query.key, "response": text} for query, text in zip(batch, texts, strict=True)]
                append_jsonl(file, rows)
                answers |= {row["key"]: row["response"] for row in rows}
                advance(len(batch))
    again = {sample.id for sample in chosen}
    rewritten = [
        sample.with_responses([answers[key] for key in sample.keys]) if sample.id in again else sample
        for sample in dataset.samples
    ]
    result = saved(dataset, rewritten, out)
    write_jsonl(
        out / "scores.jsonl",
        (
            {
                "id": old.id,
                "rewritten": old.id in again,
                "old": [turn.response for turn in old.turns],
                "new": [turn.response for turn in new.turns],
            }
            for old, new in zip(dataset.samples, rewritten, strict=True)
        ),
    )
    return Defended(result, {}, (), tuple(sample.id for sample in chosen), "")
