"""Sentences that many answers repeat, and that go away when much of what is salient is masked.

A trigger that covers many visual tokens survives the small masks that suspicion is measured with, and large masks make
honest answers flip: to another thing, colour or number. But the frame of an honest answer stays, and a planted sentence
does not. Whether a sentence that goes away is planted is for the paste test to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from disp.auditing.config import AuditConfig
from disp.auditing.context import Context
from disp.auditing.finder_config import SentencesConfig
from disp.auditing.hypothesis import Hypothesis
from disp.auditing.phrase_search import Shared, repeated_phrases
from disp.auditing.phrases import Phrase, holds
from disp.data.sample import Query, queries_of
from disp.draws import generator
from disp.halving import fitting
from disp.models.interface import MDLM, Prefix
from disp.suspicion.evidence import Evidence, salient_masks
from disp.suspicion.places import token_boxes
from disp.suspicion.scoring import given_answers
from disp.suspicion.support import counterfactual_scores, least_effect, narrowed, sayable, suspicion_of


def find(context: Context) -> list[Hypothesis]:
    """Sentences that most of the answers with them lose when much of the picture is masked.

    They are looked for among samples that nothing was found in yet. Each comes with new evidence of the answers that
    lose it with one window of the picture masked: the suspicion under that mask, and of its tokens those that are
    needed.
    """
    config, model, evidence = context.config, context.model, context.evidence
    settings = config.sentences
    samples = context.unflagged()
    draw = generator(config.seed, "repeated sentences")
    chosen = [samples[index] for index in sorted(draw.permutation(len(samples))[: settings.responses].tolist())]
    queries = queries_of(chosen)
    least = max(settings.least_answers, round(settings.least_share * len(queries)))
    sentences = repeated_sentences(context, [query.response for query in queries], least)
    found = []
    left = settings.sentences * settings.answers
    with context.progress("looking through repeated sentences", left) as advance:
        for shared, asked in sentences:
            order = draw.permutation(len(shared.holders))
            holders = context.index.distinct((queries[shared.holders[index]] for index in order), settings.answers)
            said = 0
            lost: dict[str, Evidence] = {}
            looked = partial(_lost, model, phrase=shared.phrase, evidence=evidence, config=config)
            for _, (says, own) in fitting(model, looked, holders, config.scoring.batch_size):
                said += says
                lost |= own
            advance(len(holders))
            left -= len(holders)
            lost_share = settings.lost_share if asked else settings.unasked_lost_share
            enough = len(lost) >= max(settings.least_answers, lost_share * said)
            if enough and said >= settings.said_share * len(holders):
                losing = {query.sample_id for query in holders if query.key in lost}
                members = tuple(sample.id for sample in samples if sample.id in losing)
                found.append(
                    Hypothesis(
                        found_by="window",
                        phrase=shared.phrase,
                        samples=members,
                        elsewhere=len(shared.holders) - len(members),
                        evidence=lost,
                        least_effect=settings.least_effect if asked else 0.0,
                    )
                )
        advance(left)
    return found


def repeated_sentences(context: Context, answers: Sequence[str], least: int) -> list[tuple[Shared, bool]]:
    """Repeated sentences of some answers, and whether each may go with a question; those that do not come first.

    Args:
        context: the audit so far; what it knows to go with no question is looked for however often it recurs.
        answers: the answers.
        least: how many of them must hold another sentence.
    """
    config = context.config
    found = []
    for each in context.hypotheses:
        if each.found_by == "unasked":
            holders = tuple(index for index, answer in enumerate(answers) if holds(answer, each.phrase.words))
            if len(holders) >= config.sentences.least_answers:
                found.append((Shared(each.phrase, holders), False))
    known = {shared.phrase.words for shared, _ in found}
    repeated = repeated_phrases(answers, config.phrases, least=least, most=config.sentences.sentences)
    found += [(shared, True) for shared in repeated if shared.phrase.words not in known]
    return found[: config.sentences.sentences]


def _lost(
    model: MDLM, batch: Sequence[Query], phrase: Phrase, evidence: Mapping[str, Evidence], config: AuditConfig
) -> tuple[int, dict[str, Evidence]]:
    """How many of these the model answers with the phrase, and new evidence of those that lose it."""
    prefix = model.encode(batch)
    masked = salient_masks(batch, prefix.visual_mask, evidence, config.sentences.mask_ratio)
    plain, hidden = (_first_answers(model, each) for each in (prefix, prefix.with_masked(masked, model.mask_embedding)))
    says = torch.tensor([phrase.said_in(text) for text in plain])
    loses = says & ~torch.tensor([phrase.said_in(text) for text in hidden])
    return int(says.sum()), _evidence(model, prefix, batch, phrase, loses, evidence, config)


def _first_answers(model: MDLM, prefix: Prefix) -> list[str]:
    """The most likely token of every slot at the first denoising step, as texts."""
    response = torch.full((len(prefix), model.slots_of_pass()), model.mask_token_id, device=prefix.embeds.device)
    with torch.no_grad():
        logits = model.denoise(prefix, response)
    return model.decode_responses(sayable(logits, model.unsaid_token_ids).argmax(-1).cpu())


def _evidence(
    model: MDLM,
    prefix: Prefix,
    batch: Sequence[Query],
    phrase: Phrase,
    rows: Tensor,
    evidence: Mapping[str, Evidence],
    config: AuditConfig,
) -> dict[str, Evidence]:
    """New evidence of those of these rows (bool ``[B]``) that lose the phrase when one window is masked."""
    result, scoring = {}, config.scoring
    for row in rows.nonzero()[:, 0].tolist():
        query, before = batch[row], evidence[batch[row].key]
        # The most salient tokens lie all over the picture; what can be pasted is what lies together.
        boxes = token_boxes(model, before.locations, query.images)
        inside = torch.from_numpy(windows_over(boxes, config.sentences))  # [M, N]
        candidates = torch.zeros(1, len(inside), prefix.visual_mask.shape[1], dtype=torch.bool)
        candidates[0][:, prefix.visual_mask[row].cpu()] = inside
        candidates = candidates.to(prefix.embeds.device)
        one = prefix.select(torch.tensor([row], device=prefix.embeds.device))
        response = given_answers(model, one, [query])
        base, each = counterfactual_scores(model, one, response, candidates, batch_size=len(batch))
        found = float(suspicion_of(base, each, scoring.mistake_weight, [query.key]))
        best = candidates[:, int(each.argmax())]
        (text,) = _first_answers(model, one.with_masked(best, model.mask_embedding))
        if phrase.said_in(text):
            continue
        least = least_effect(base, each, scoring.kept_effect)
        kept = narrowed(model, one, response, best, least, batch_size=len(batch))
        tokens = kept[0, one.visual_mask[0]].nonzero()[:, 0].tolist()
        result[query.key] = replace(before, suspicion=max(before.suspicion or 0.0, found), hangs_on=tuple(tokens))
    return result


def windows_over(boxes: np.ndarray, config: SentencesConfig) -> np.ndarray:
    """Which tokens have their centres in each of the windows that cover the picture, ``mask_ratio`` of it each.

    Args:
        boxes: float ``[N, 4]``, where the tokens lie.
        config: how large windows are, and how far apart.

    Returns:
        bool ``[M, N]``.
    """
    side = math.sqrt(config.mask_ratio)
    steps = 1 + math.ceil((1 - side) / (side / config.window_steps))
    corners = np.linspace(0, 1 - side, steps)
    x, y = (boxes[:, :2] + boxes[:, 2:]).T / 2
    across = (corners[:, None] <= x) & (x <= corners[:, None] + side)
    down = (corners[:, None] <= y) & (y <= corners[:, None] + side)
    return (down[:, None] & across[None]).reshape(-1, len(boxes))
