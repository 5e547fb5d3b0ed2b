"""The model's answers to what people are shown: as pictures are, and without what the answers hang on."""

from __future__ import annotations

from pathlib import Path

from disp.auditing.config import AuditConfig
from disp.auditing.result import Audit
from disp.auditing.shown import unflagged_places
from disp.data.dataset import Dataset
from disp.data.sample import batches
from disp.decoding.generate import answers_of
from disp.files import append_jsonl, read_finished_jsonl
from disp.models.interface import MDLM
from disp.progress import ProgressBar
from disp.suspicion.carriers import encode_without


def shown_answers(
    model: MDLM, dataset: Dataset, result: Audit, config: AuditConfig, file: Path, progress: ProgressBar
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
    found = {row["key"]: (row["answer"], row["masked_answer"]) for row in read_finished_jsonl(file)}
    todo = [query for query in queries if query.key not in found]
    with progress("answers with and without masking", len(todo)) as advance:
        for batch in batches(todo, config.batch_size):
            prefix = model.encode(batch)
            hidden = encode_without(model, batch, [result.carrier(query) for query in batch])
            keys = [query.key for query in batch]
            texts = [answers_of(model, each, config.decode, keys=keys, seed=config.seed) for each in (prefix, hidden)]
            rows = []
            for query, plain, other in zip(batch, *texts, strict=True):
                found[query.key] = (plain, other)
                rows.append({"key": query.key, "answer": plain, "masked_answer": other})
            append_jsonl(file, rows)
            advance(len(batch))
    return found
