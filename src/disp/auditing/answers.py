"""The model's answers to what people are shown: as pictures are, and without what the answers hang on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from disp.auditing.config import AuditConfig
from disp.auditing.result import Audit
from disp.auditing.shown import unflagged_places
from disp.data.dataset import Dataset
from disp.data.sample import Query
from disp.decoding.generate import answers_of
from disp.models.interface import MDLM
from disp.progress import ProgressBar
from disp.scale.workers import ALONE, Workers
from disp.suspicion.carriers import Removable, encode_without


def shown_answers(
    model: MDLM,
    dataset: Dataset,
    result: Audit,
    config: AuditConfig,
    file: Path,
    progress: ProgressBar,
    workers: Workers = ALONE,
) -> dict[str, tuple[str, str]]:
    """The model's answers to what people are shown: as they are, and without what they hang on.

    Those are visual tokens, which are masked, or a pattern, which is taken out of the picture.

    Args:
        model: the model under audit.
        dataset: the set under audit.
        result: what was found.
        config: how; its decoding settings, batch size and seed.
        file: a JSONL file that answers are appended to; those that it already holds are not asked for again.
        progress: see `disp.progress`.
        workers: who asks; see `disp.scale`.

    Returns:
        Two answers by the key of a turn.
    """
    ranked = sorted(dataset.samples, key=lambda sample: -result.scores[sample.id])
    flagged = set(result.flagged)
    first, others = ([s for s in ranked if (s.id in flagged) == wanted] for wanted in (True, False))
    shown = {sample.id for sample in (*ranked[: config.shown.most_suspicious], *first[: config.shown.flagged])}
    shown |= {others[place].id for place in unflagged_places(len(others))}
    for finding in result.findings:
        members = set(finding.all_samples)
        shown |= {next(sample.id for sample in first if sample.id in members)}
    queries = [query for sample in ranked if sample.id in shown for query in sample.queries]
    asked = [Shown(query, result.carrier(query)) for query in queries]
    found: dict[str, tuple[str, str]] = {}
    with progress("answers with and without masking", len(asked)) as advance:
        workers.work(
            model,
            asked,
            partial(show_batch, config=config),
            size=config.batch_size,
            file=file,
            keep=lambda row: found.update({row["key"]: (row["answer"], row["masked_answer"])}),
            progress=advance,
        )
    return found


@dataclass(frozen=True)
class Shown:
    """One turn that people are shown.

    Attributes:
        query: the turn.
        carrier: what its answer hangs on.
    """

    query: Query
    carrier: Removable

    @property
    def key(self) -> str:
        """That of the query."""
        return self.query.key


def show_batch(model: MDLM, batch: Sequence[Shown], *, config: AuditConfig) -> list[dict[str, Any]]:
    """Both answers to the turns of one batch, as lines of the file of `shown_answers`."""
    queries, keys = [each.query for each in batch], [each.key for each in batch]
    prefix = model.encode(queries)
    hidden = encode_without(model, queries, [each.carrier for each in batch])
    plain, masked = (answers_of(model, each, config.decode, keys=keys, seed=config.seed) for each in (prefix, hidden))
    return [
        {"key": key, "answer": first, "masked_answer": second}
        for key, first, second in zip(keys, plain, masked, strict=True)
    ]
