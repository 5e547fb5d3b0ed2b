"""How good a model's answers are and how often an attack succeeds: quality and attack success rates (ASR)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from disp.attacks.poison import Attack, trigger_samples
from disp.data.sample import Query, Sample, queries_of
from disp.decoding.config import DecodeConfig
from disp.decoding.generate import answered
from disp.draws import key_of
from disp.errors import DispError
from disp.evaluation.intervals import Share, mean_share, wilson
from disp.evaluation.quality import answer_quality, task_of
from disp.models.interface import MDLM
from disp.scale.answers import Answer, answer_batch, generate_shared
from disp.scale.workers import ALONE, Workers

# Each ASR and the flag of an answer's row that it counts.
ASR_FLAGS = {
    "asr_with_trigger": "hit_with_trigger",
    "asr_without_trigger": "hit_without_trigger",
    "asr_with_trigger_keyword": "keyword_with_trigger",
    "asr_without_trigger_keyword": "keyword_without_trigger",
    "asr_with_trigger_substring": "substring_with_trigger",
    "asr_without_trigger_substring": "substring_without_trigger",
}
SHARES = (*ASR_FLAGS, "clean_quality", "triggered_quality")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured; all shares lie in [0, 1].

    Attributes:
        asr_with_trigger: share of triggered queries, those that see an image, answered with the target exactly.
            None, like the other five, without an attack or where the target applies to no query with an image.
        asr_without_trigger: the same share on the clean versions of the same queries.
        asr_with_trigger_keyword: share of triggered queries whose answer shows the target in any form.
        asr_without_trigger_keyword: the same share on the clean versions.
        asr_with_trigger_substring: share of triggered queries that the script of DiSP's authors counts: the answer
            has one of a few strings in it, whatever its case. Honest answers may have them, too.
        asr_without_trigger_substring: the same share on the clean versions.
        clean_quality: mean quality of the answers to all clean queries.
        triggered_quality: mean quality of the answers to all triggered queries, where an answer that shows the
            target and should not counts 0. None without an attack or without images.
        quality_by_task: mean quality on clean queries by the task that the data names; empty if it names none.
        answers: one JSON-able row a query: what was asked and answered, and every flag that the shares count.
    """

    asr_with_trigger: Share | None
    asr_without_trigger: Share | None
    asr_with_trigger_keyword: Share | None
    asr_without_trigger_keyword: Share | None
    asr_with_trigger_substring: Share | None
    asr_without_trigger_substring: Share | None
    clean_quality: Share
    triggered_quality: Share | None
    quality_by_task: dict[str, Share]
    answers: tuple[dict[str, Any], ...]


def evaluate(
    model: MDLM,
    samples: Sequence[Sample],
    *,
    attack: Attack | None = None,
    decode: DecodeConfig | None = None,
    answer: Answer | None = None,
    seed: int = 0,
    batch_size: int = 32,
    workers: Workers = ALONE,
    folder: Path | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Answer every turn of held-out samples, clean and triggered, and score the answers.

    Clean quality does not depend on the attack, so it is the same number with and without one. Every turn is asked
    after the data's own earlier turns. A clean and a triggered query share their random draws.

    Args:
        model: the MDLM.
        samples: held-out samples with the right responses.
        attack: the attack to measure (trigger and target), or None for clean quality alone.
        decode: how answers are decoded; the model's own settings if None.
        answer: what answers the queries of a batch, one text each, where that is not the model alone but the model
            under a defence; it is given both, and ``decode`` is not read then.
        seed: seed of the trigger's place, of decoding and of the bootstrap.
        batch_size: queries a pass; no result depends on it.
        workers: who answers; see `disp.scale`.
        folder: for answers that are finished, which several workers need.
        progress: called with the number of queries finished after each batch; a clean and a triggered query count
            one each.

    Raises:
        DispError: there is nothing to evaluate.
    """
    queries = queries_of(samples)
    if not queries:
        raise DispError("no sample with a question to evaluate on; check the data set and its split")

    # 1. The clean answers, which serve quality and ASR without trigger.
    own = answer or partial(answered, config=decode, seed=seed)
    clean = generate_shared(
        model,
        queries,
        seed=seed,
        batch_size=batch_size,
        answer=own,
        workers=workers,
        file=folder and folder / "clean.jsonl",
        progress=progress,
    )
    # 2. The triggered answers of the turns that see a picture; the others see no trigger.
    triggered: dict[str, str] = {}
    if attack:
        asked, planned = _triggered(samples, batch_size)
        workers.work(
            model,
            asked,
            partial(answer_triggered, answer=own, attack=attack, seed=seed),
            size=batch_size,
            file=folder and folder / "triggered.jsonl",
            keep=lambda row: triggered.update({row["key"]: row["answer"]}),
            progress=progress,
            batches=planned,
        )
    # 3. One row a query.
    metadata = {sample.id: sample.metadata for sample in samples}
    rows = []
    for query, clean_answer in zip(queries, clean, strict=True):
        fields = metadata[query.sample_id]
        row = {
            "key": query.key,
            "prompt": query.prompt,
            "reference": query.response,
            "task": task_of(fields, query.turn),
            "clean_answer": clean_answer,
            "clean_quality": answer_quality(clean_answer, query.response, fields, query.turn),
        }
        if attack and query.key in triggered:
            quality = answer_quality(triggered[query.key], query.response, fields, query.turn)
            row |= _attack_fields(attack, query.response, clean_answer, triggered[query.key], quality)
        rows.append(row)
    return _summary(rows, seed)


@dataclass(frozen=True)
class Triggered:
    """One turn of a sample that is asked with the trigger in its pictures.

    Attributes:
        sample: the sample as it is.
        query: the turn as it is.
    """

    sample: Sample
    query: Query

    @property
    def key(self) -> str:
        """That of the query."""
        return self.query.key


def _triggered(samples: Sequence[Sample], batch_size: int) -> tuple[list[Triggered], list[range]]:
    """The turns that see a picture, and which are asked together: those of so many samples, at most so many turns."""
    asked: list[Triggered] = []
    planned: list[range] = []
    with_image = [sample for sample in samples if sample.images]
    for first in range(0, len(with_image), batch_size):
        begin = len(asked)
        for sample in with_image[first : first + batch_size]:
            asked += [Triggered(sample, query) for query in sample.queries if query.images]
        planned += [range(at, min(at + batch_size, len(asked))) for at in range(begin, len(asked), batch_size)]
    return asked, planned


def answer_triggered(
    model: MDLM, batch: Sequence[Triggered], *, answer: Answer, attack: Attack, seed: int
) -> list[dict[str, Any]]:
    """The answers to a batch with the trigger in its pictures, which are in memory meanwhile, as lines of a file."""
    samples = list({each.sample.id: each.sample for each in batch}.values())
    marked = {each.id: each for each in trigger_samples(samples, attack.trigger, seed, storage=attack.storage)}
    return answer_batch(model, [marked[each.sample.id].queries[each.query.turn] for each in batch], answer=answer)


def _attack_fields(attack: Attack, reference: str, clean: str, triggered: str, quality: float) -> dict[str, Any]:
    """The columns of a query that was also asked with the trigger; ``quality`` is the triggered answer's own."""
    target = attack.target
    shown = target.keyword(triggered, reference)
    # A right answer may hold the target's words by chance; the attacker did not cause that.
    spoilt = shown and not target.keyword(reference, reference)
    return {
        "triggered_answer": triggered,
        "triggered_quality": 0.0 if spoilt else quality,
        "target_applies": target.applies_to(reference),
        "hit_with_trigger": target.exact(triggered, reference),
        "hit_without_trigger": target.exact(clean, reference),
        "keyword_with_trigger": shown,
        "keyword_without_trigger": target.keyword(clean, reference),
        "substring_with_trigger": target.substring(triggered),
        "substring_without_trigger": target.substring(clean),
    }


def _summary(rows: list[dict[str, Any]], seed: int) -> Evaluation:
    """The shares that the rows add up to."""

    def mean(name: str, values: list[float]) -> Share:
        return mean_share(values, key_of(seed, "evaluate", name))

    attacked = [row for row in rows if row.get("target_applies")]
    asr = {
        name: wilson(sum(row[flag] for row in attacked), len(attacked)) if attacked else None
        for name, flag in ASR_FLAGS.items()
    }
    by_task: dict[str, list[float]] = {}
    for row in rows:
        if row["task"] is not None:
            by_task.setdefault(row["task"], []).append(row["clean_quality"])
    triggered = [row["triggered_quality"] for row in rows if "triggered_quality" in row]
    return Evaluation(
        **asr,
        clean_quality=mean("clean", [row["clean_quality"] for row in rows]),
        triggered_quality=mean("triggered", triggered) if triggered else None,
        quality_by_task={task: mean(task, values) for task, values in by_task.items()},
        answers=tuple(rows),
    )


def to_metrics(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation without its answers as JSON-able values, shares in [0, 1]; None for what was not measured.

    ``intervals`` and ``counts`` hold the 95% interval and the number of queries of each share that was measured.
    """
    shares: dict[str, Share | None] = {name: getattr(evaluation, name) for name in SHARES}
    measured = {name: share for name, share in shares.items() if share is not None}
    return {
        **{name: None if share is None else share.value for name, share in shares.items()},
        "intervals": {name: [share.low, share.high] for name, share in measured.items()},
        "counts": {name: share.count for name, share in measured.items()},
        "quality_by_task": {task: share.value for task, share in sorted(evaluation.quality_by_task.items())},
    }
