"""Filters of fine-tuning sets: measure every turn, judge all samples, write the rows that are left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from disp.baselines.config import BaselineConfig, Defended
from disp.baselines.interface import Filter, Judgement
from disp.baselines.saving import saved
from disp.data.dataset import Dataset
from disp.data.sample import Query, Sample, queries_of
from disp.errors import DispError
from disp.files import append_jsonl, read_finished_jsonl, write_jsonl
from disp.halving import fitting
from disp.models.interface import MDLM
from disp.progress import ProgressBar
from disp.suspicion.support import check_finite


def filtered(
    model: MDLM, dataset: Dataset, defence: Filter, config: BaselineConfig, out: Path, progress: ProgressBar
) -> Defended:
    """The set without the rows that a filter drops, written to ``out``; see `disp.baselines.run.run_baseline`."""
    # 1. Measure turn by turn; a sample's values are the mean over its turns.
    turns = _measured(model, dataset.samples, defence, config, out / "measured.jsonl", progress)
    values: dict[str, np.ndarray] = {}
    for sample in dataset.samples:
        each = [turns[query.key] for query in queries_of([sample])]
        rows = [row for row in each if row is not None]
        if rows:
            values[sample.id] = np.mean(rows, axis=0)
    if len(values) < 2:
        raise DispError(
            f"{dataset.path}: {defence.name} compares rows with one another, and {len(values)} of "
            f"{len(dataset.samples)} can be measured; it needs at least 2 rows with a picture"
        )
    # 2. Judge them all.
    judged: Judgement = defence.judge(np.stack(list(values.values())), config.parameters, config.seed)
    scores = dict(zip(values, judged.scores.tolist(), strict=True))
    dropped = {key for key, gone in zip(values, judged.dropped.tolist(), strict=True) if gone}
    kept = [sample for sample in dataset.samples if sample.id not in dropped]
    if not kept:
        raise DispError(f"{dataset.path}: {defence.name} drops every row; nothing remains to train on")
    # 3. Write what is left.
    result = saved(dataset, kept, out)
    write_jsonl(
        out / "scores.jsonl",
        ({"id": each.id, "score": scores.get(each.id), "dropped": each.id in dropped} for each in dataset.samples),
    )
    return Defended(result, scores, tuple(each.id for each in dataset.samples if each.id in dropped), (), judged.note)


def _measured(
    model: MDLM, samples: Sequence[Sample], defence: Filter, config: BaselineConfig, file: Path, progress: ProgressBar
) -> dict[str, list[float] | None]:
    """What was measured of each turn, by key; None for a turn without visual tokens, where those are left out."""
    found: dict[str, list[float] | None] = {row["key"]: row["values"] for row in read_finished_jsonl(file)}
    asked = queries_of(samples)
    queries = [query for query in asked if query.key not in found]

    def measured(batch: Sequence[Query]) -> dict[str, list[float] | None]:
        shown = [query for query in batch if query.images or not defence.pictures_only]
        each: dict[str, list[float] | None] = {query.key: None for query in batch}
        if shown:
            values = defence.measure(model, model.encode(shown), shown, config.parameters, config.seed)
            check_finite(values, [query.key for query in shown])
            # As they are written, so that a run that goes on computes with the same numbers.
            for query, row in zip(shown, values.tolist(), strict=True):
                each[query.key] = [float(f"{value:.7g}") for value in row]
        return each

    with progress("measuring", len(asked)) as advance:
        advance(len(asked) - len(queries))
        for batch, each in fitting(model, measured, queries, config.batch_size):
            append_jsonl(file, [{"key": key, "values": row} for key, row in each.items()])
            found |= each
            advance(len(batch))
    return found
