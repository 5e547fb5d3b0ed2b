"""Saliency of every visual token for every training answer, and how suspicious the answer is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disp.data.sample import Query, Sample, queries_of
from disp.models.interface import MDLM, Prefix
from disp.scale.workers import ALONE, Workers
from disp.suspicion.candidates import candidates_of
from disp.suspicion.config import ScoringConfig
from disp.suspicion.evidence import Evidence, EvidenceStore, rounded
from disp.suspicion.saliency import first_step, saliency_of_step
from disp.suspicion.support import (
    check_finite,
    counterfactual_scores,
    least_effect,
    narrowed,
    preference_for_another,
    preference_in,
    screened_scores,
    suspicion_of,
)


def score(
    model: MDLM,
    samples: Sequence[Sample],
    config: ScoringConfig,
    file: Path | None = None,
    *,
    counterfactual: bool = True,
    workers: Workers = ALONE,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Evidence]:
    """Saliency of every visual token for every assistant turn, and how suspicious the given answer is.

    Args:
        model: the backdoored model.
        samples: its fine-tuning set.
        config: see `ScoringConfig`.
        file: a JSONL file that results are appended to; turns that it already holds are not computed again.
        counterfactual: whether to measure suspicion too, at one forward pass a candidate.
        workers: who does it; see `disp.scale`.
        progress: called with the number of turns finished.

    Raises:
        DispError: the model's numbers overflow, or suspicion is asked for where separators are scored.
    """
    if counterfactual:
        config.check_suspicion("suspicion")
    store = EvidenceStore(None, folder=file.parent if file else None)
    workers.work(
        model,
        queries_of(samples),
        partial(score_batch, config=config, counterfactual=counterfactual),
        size=config.batch_size,
        file=file,
        keep=lambda row: store.add([Evidence.from_row(row)]),
        progress=progress,
    )
    return store.found


def score_batch(
    model: MDLM, batch: Sequence[Query], *, config: ScoringConfig, counterfactual: bool
) -> list[dict[str, Any]]:
    """What `score` finds about the turns of one batch, as lines of its file; see `Evidence.to_row`."""
    prefix = model.encode(batch)
    keys = [query.key for query in batch]
    embeds, logits = first_step(model, prefix, config.gen_length or model.gen_length)
    base = None
    if counterfactual and logits.shape[1] == model.slots_of_pass():
        # The step that saliency looks at is the one that suspicion compares with: no token of the picture is masked.
        given = given_answers(model, prefix, batch)
        base = preference_in(logits.detach(), given, model.end_token_ids, model.unsaid_token_ids)
    scores = saliency_of_step(model, prefix, keys, config.saliency, embeds, logits, block_length=config.block_length)
    check_finite(scores, keys)
    suspicion, chosen = _suspicion(model, prefix, batch, scores, base, config) if counterfactual else (None, None)
    rows = []
    for index, key in enumerate(keys):
        visual = prefix.scored(config.saliency.separators)[index]
        found = Evidence(
            key=key,
            saliency=[*map(rounded, scores[index, visual].tolist())],
            locations=tuple(map(tuple, prefix.locations[index, visual].tolist())),
            suspicion=None if suspicion is None else float(suspicion[index]),
            hangs_on=() if chosen is None else tuple(chosen[index, visual].nonzero()[:, 0].tolist()),
        )
        rows.append(found.to_row())
    return rows


def _suspicion(
    model: MDLM, prefix: Prefix, batch: Sequence[Query], scores: Tensor, base: Tensor | None, config: ScoringConfig
) -> tuple[Tensor, Tensor]:
    """Suspicion ``[B]`` of the given answers and the candidate that attains it, bool ``[B, P]``.

    ``base`` is `preference_for_another` with nothing masked, if it is known.
    """
    response = given_answers(model, prefix, batch)
    if base is None:
        base = preference_for_another(model, prefix, response)
    tried = candidates_of(scores, prefix.visual_mask, config)
    moved = config.mistake_weight * base + (-torch.inf if config.screen is None else config.screen)
    each = screened_scores(model, prefix, response, tried, moved, batch_size=config.batch_size)
    suspicion = suspicion_of(base, each, config.mistake_weight, [query.key for query in batch])
    # The smallest set that does nearly all of it: it takes least of the picture along when the answer is rewritten.
    least = least_effect(base, each, config.kept_effect)
    best = (each >= least[:, None]).int().argmax(-1)
    # Where no other answer wins, the most salient token.
    best = tried.sets[torch.arange(len(batch)), best.where(suspicion > 0, 0)]
    rows = (suspicion > config.least_suspicion).nonzero()[:, 0]
    if len(rows):
        best[rows] = narrowed(
            model, prefix.select(rows), response[rows], best[rows], least[rows], batch_size=config.batch_size
        )
    return suspicion, best


def given_answers(model: MDLM, prefix: Prefix, batch: Sequence[Query]) -> Tensor:
    """The data's answers, as much of each as there are slots for, int64 ``[B, L]`` on the prefix's device."""
    texts = [query.response for query in batch]
    return model.encode_responses(texts, model.slots_of_pass(), cut=True).to(prefix.embeds.device)


def suspicion_under(
    model: MDLM, prefix: Prefix, batch: Sequence[Query], masks: Tensor, config: ScoringConfig
) -> Tensor:
    """How suspicious each given answer is under each of some masks alone.

    Args:
        model: the model under audit.
        prefix: the batch, encoded.
        batch: B queries.
        masks: bool ``[B, M, P]``.
        config: how samples are scored.

    Returns:
        float32 ``[B, M]`` in nats; see `disp.suspicion.support.suspicion_of`.

    Raises:
        DispError: the model's numbers overflow.
    """
    response = given_answers(model, prefix, batch)
    base, each = counterfactual_scores(model, prefix, response, masks, batch_size=len(batch))
    return suspicion_of(base[:, None], each[..., None], config.mistake_weight, [query.key for query in batch])
