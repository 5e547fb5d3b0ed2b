"""New answers under masking, or about pictures without the pattern: what `disp.purification.purify` asks the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from disp.data.sample import Query, Sample, unanswered
from disp.decoding.generate import answers_of
from disp.models.interface import MDLM, Prefix
from disp.purification.config import PurifyConfig
from disp.scale.workers import ALONE, Workers
from disp.suspicion.carriers import Pattern, without_patterns
from disp.suspicion.evidence import Evidence, evidence_masks, salient_masks, suspicious_query
from disp.suspicion.masking import hide, mask_random
from disp.suspicion.places import tokens_at


@dataclass(frozen=True)
class RewriteTask:
    """One turn that is answered anew, with all that its mask follows from.

    Attributes:
        query: the turn, after the new answers to those before.
        own: its evidence.
        told_by: the most suspicious turn of its sample, which says where the trigger is.
        told: the evidence of that turn.
        pattern: what is taken out of its pictures, instead of masking tokens.
    """

    query: Query
    own: Evidence
    told_by: Query
    told: Evidence
    pattern: Pattern | None

    @property
    def key(self) -> str:
        """That of the query."""
        return self.query.key


def rewrite_answers(
    model: MDLM,
    samples: Sequence[Sample],
    evidence: Mapping[str, Evidence],
    patterns: Mapping[str, Pattern],
    config: PurifyConfig,
    file: Path,
    *,
    workers: Workers = ALONE,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """New answers to every turn of some samples. Later turns see the new answers of the earlier ones.

    Args:
        model: what answers.
        samples: whose answers are rewritten.
        evidence: by key, of every turn of theirs.
        patterns: by id of a sample what is taken out of its pictures, instead of masking tokens.
        config: how.
        file: JSONL file that the answers are appended to; those that it holds are not asked for again.
        workers: who does it; see `disp.scale`.
        progress: called with the number of turns finished.

    Returns:
        The answers, and the visual tokens that were masked, by key.
    """
    answers: dict[str, str] = {}
    masks: dict[str, tuple[int, ...]] = {}

    def keep(row: dict[str, Any]) -> None:
        answers[row["key"]], masks[row["key"]] = row["response"], tuple(row["masked"])

    told_by = {sample.id: suspicious_query(sample, evidence) for sample in samples}
    for turn in range(max((len(sample.turns) for sample in samples), default=0)):
        asked = [
            RewriteTask(
                query=query,
                own=evidence[query.key],
                told_by=told_by[query.sample_id],
                told=evidence[told_by[query.sample_id].key],
                pattern=patterns.get(query.sample_id),
            )
            for query in unanswered(samples, turn, answers)
        ]
        step = partial(rewrite_batch, config=config)
        workers.work(model, asked, step, size=config.batch_size, file=file, keep=keep, progress=progress)
    return answers, masks


def rewrite_batch(model: MDLM, batch: Sequence[RewriteTask], *, config: PurifyConfig) -> list[dict[str, Any]]:
    """New answers to the turns of one batch, as lines of the file of `rewrite_answers`."""
    queries = [each.query for each in batch]
    patterns = {each.query.sample_id: each.pattern for each in batch if each.pattern is not None}
    prefix = model.encode(without_patterns(queries, patterns))
    masked = _masks(model, batch, prefix, config)
    masked[[index for index, each in enumerate(batch) if each.pattern is not None]] = False
    hidden = hide(prefix, masked, model.mask_embedding, config.substitute)
    keys = [query.key for query in queries]
    texts = answers_of(model, hidden, config.decode, keys=keys, seed=config.seed)
    scored = prefix.scored(config.scoring.saliency.separators)
    return [
        {"key": key, "masked": masked[index, scored[index]].nonzero()[:, 0].tolist(), "response": text}
        for index, (key, text) in enumerate(zip(keys, texts, strict=True))
    ]


def _masks(model: MDLM, batch: Sequence[RewriteTask], prefix: Prefix, config: PurifyConfig) -> Tensor:
    """The visual tokens to mask, bool ``[B, P]``."""
    queries = [each.query for each in batch]
    scored, rounding = prefix.scored(config.scoring.saliency.separators), config.rounding
    if config.mode == "random":
        keys = [query.key for query in queries]
        return mask_random(scored, config.mask_ratio, keys, config.seed, rounding=rounding)
    if config.mode == "all":
        own = {each.key: each.own for each in batch}
        return salient_masks(queries, scored, own, config.mask_ratio, rounding=rounding)
    found = [
        replace(each.own, hangs_on=tokens_at(model, each.query, each.own, each.told_by, each.told)) for each in batch
    ]
    return evidence_masks(prefix.visual_mask, found)
