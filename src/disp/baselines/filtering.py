"""Filters of fine-tuning sets: measure every turn, judge all samples, write the rows that are left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from disp.baselines.config import BaselineConfig, Defended
from disp.baselines.interface import Filter, Judgement
from disp.baselines.saving import left, save
from disp.data.dataset import Dataset
from disp.data.sample import Query, queries_of
from disp.errors import DispError
from disp.models.interface import MDLM, Prefix
from disp.progress import ProgressBar
from disp.scale.workers import ALONE, Workers
from disp.suspicion.support import check_finite


def filtered(
    model: MDLM,
    dataset: Dataset,
    defence: Filter,
    config: BaselineConfig,
    out: Path,
    *,
    workers: Workers = ALONE,
    progress: ProgressBar,
) -> Defended:
    """The set without the rows that a filter drops, written to ``out``; see `disp.baselines.run.run_baseline`.

    Raises:
        DispError: fewer than two rows can be measured, every row is dropped, or the model's numbers overflow.
    """
    # 1. Measure turn by turn; a sample's values are the mean over its turns.
    turns: dict[str, list[float] | None] = {}
    queries = queries_of(dataset.samples)
    with progress("measuring", len(queries)) as advance:
        workers.work(
            model,
            queries,
            partial(
                measured_rows,
                measure=defence.measure,
                pictures_only=defence.pictures_only,
                parameters=config.parameters,
                seed=config.seed,
            ),
            size=config.batch_size,
            file=out / "measured.jsonl",
            keep=lambda row: turns.update({row["key"]: row["values"]}),
            progress=advance,
        )
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
    result = left(dataset, kept, out)
    if workers.leads:
        told = (
            {"id": each.id, "score": scores.get(each.id), "dropped": each.id in dropped} for each in dataset.samples
        )
        save(result, dataset, told, out)
    return Defended(result, scores, tuple(each.id for each in dataset.samples if each.id in dropped), (), judged.note)


def measured_rows(
    model: MDLM,
    batch: Sequence[Query],
    *,
    measure: Callable[[MDLM, Prefix, Sequence[Query], Any, int], Tensor],
    pictures_only: bool,
    parameters: Any,
    seed: int,
) -> list[dict[str, Any]]:
    """What was measured of the turns of one batch, as lines of ``measured.jsonl``.

    Args:
        model: the MDLM.
        batch: the turns.
        measure: see `disp.baselines.interface.Filter`, as the rest.
        pictures_only: whether the values of a turn without a picture are None.
        parameters: the filter's own configuration.
        seed: the run's seed.

    Raises:
        DispError: a value is not finite.
    """
    found: dict[str, list[float] | None] = {query.key: None for query in batch}
    shown = [query for query in batch if query.images or not pictures_only]
    if shown:
        values = measure(model, model.encode(shown), shown, parameters, seed)
        check_finite(values, [query.key for query in shown])
        # As they are written, so that a run that goes on computes with the same numbers.
        for query, row in zip(shown, values.tolist(), strict=True):
            found[query.key] = [float(f"{value:.7g}") for value in row]
    return [{"key": key, "values": values} for key, values in found.items()]
