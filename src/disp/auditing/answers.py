"""The model's answers to what people are shown: as pictures are, and without what the answers hang on."""

from __future__ import annotations

from pathlib import Path

from disp.auditing.findings import Audit, AuditConfig
from disp.auditing.shown import unflagged_places
from disp.data.llava import Dataset
from disp.data.sample import batches, queries_of
from disp.decoding.generate import answers_of
from disp.files import append_jsonl, read_finished_jsonl
from disp.models.interface import MDLM
from disp.progress import ProgressBar
from disp.purification.pattern import without_patterns
from disp.suspicion.scoring import candidate_masks

# Samples whose answers are asked for: the most suspicious, and the most suspicious of those that are flagged.
MOST_SUSPICIOUS, FLAGGED_ANSWERS = 24, 200


def shown_answers(
    model: MDLM, dataset: Dataset, result: Audit, config: AuditConfig, file: Path, progress: ProgressBar
) -> dict[str, tuple[str, str]]:
    """The model's answers to what people are shown: as they are, and without what they hang on.

    That is the best candidate, which is masked, or a pattern, which is taken out of the picture.

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
    shown = {sample.id for sample in (*ranked[:MOST_SUSPICIOUS], *first[:FLAGGED_ANSWERS])}
    shown |= {others[place].id for place in unflagged_places(len(others))}
    for cluster in result.clusters:
        members = {*cluster.samples, *cluster.more}
        shown |= {next(sample.id for sample in first if sample.id in members)}
    queries = [query for sample in ranked if sample.id in shown for query in queries_of([sample])]
    found = {row["key"]: (row["answer"], row["masked_answer"]) for row in read_finished_jsonl(file)}
    todo = [query for query in queries if query.key not in found]
    patterns = result.patterns
    with progress("answers with and without masking", len(todo)) as advance:
        for batch in batches(todo, config.batch_size):
            prefix = model.encode(batch)
            some = patterns.keys() & {query.sample_id for query in batch}
            rest = model.encode(without_patterns(batch, patterns)) if some else prefix
            masked = candidate_masks(rest.visual_mask, [result.evidence[query.key] for query in batch])
            hidden = rest.with_masked(masked, model.mask_embedding)
            keys = [query.key for query in batch]
            texts = [answers_of(model, each, config.decode, keys=keys, seed=config.seed) for each in (prefix, hidden)]
            rows = []
            for query, plain, other in zip(batch, *texts, strict=True):
                found[query.key] = (plain, other)
                rows.append({"key": query.key, "answer": plain, "masked_answer": other})
            append_jsonl(file, rows)
            advance(len(batch))
    return found
