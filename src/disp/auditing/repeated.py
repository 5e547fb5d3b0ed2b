"""Sentences that many answers repeat, and that go away when much of what is salient is masked.

A trigger that covers many visual tokens survives the small masks that suspicion is measured with, and large masks make
honest answers flip: to another thing, colour or number. But the frame of an honest answer stays, and a planted sentence
does not. Whether a sentence that goes away is planted is for the paste test to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from disp.auditing.distinct import distinct
from disp.auditing.findings import AuditConfig
from disp.auditing.phrases import Phrase, echoes, repeated_phrases
from disp.data.sample import Query, Sample, batches, queries_of
from disp.draws import generator
from disp.models.interface import MDLM, Prefix
from disp.suspicion.config import ScoringConfig
from disp.suspicion.places import token_boxes
from disp.suspicion.scoring import Evidence, given_answers, salient_masks
from disp.suspicion.support import counterfactual_scores, least_effect, narrowed, suspicion_of

# Share of the visual tokens that is masked, and of the picture that a window covers.
WIDE_RATIO = 0.2
# Share of the answers that must say the sentence once such a window is pasted: it may show things that are spoken of.
WIDE_EFFECT = 0.75
# Sentences that are looked at, the most frequent ones; answers of each; answers that sentences are looked for in.
SENTENCES, ANSWERS, RESPONSES = 40, 12, 20_000
# A sentence is looked at if so many answers hold it, and this share of all; as many must lose it.
LEAST_ANSWERS, LEAST_SHARE = 5, 0.005
# The share of its answers that must lose it.
LOST_SHARE = 3 / 4


def vanishing_phrases(
    model: MDLM,
    samples: Sequence[Sample],
    evidence: Mapping[str, Evidence],
    config: AuditConfig,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> list[tuple[Phrase, dict[str, Evidence]]]:
    """Repeated sentences that most of the answers with them lose when `WIDE_RATIO` of their tokens are masked.

    Args:
        model: the model under audit.
        samples: samples with an image that nothing was found in yet.
        evidence: saliency of every turn.
        config: how samples are scored; its seed draws which answers are looked at.
        progress: called with the number of answers finished, in the end as if there were `SENTENCES` of `ANSWERS`.

    Returns:
        Each sentence with new evidence of the answers that lose it with one window of the picture masked: the suspicion
        under that mask, and of its tokens those that are needed. ``Phrase.flagged`` are the indices of their samples.
    """
    draw = generator(config.seed, "repeated sentences")
    chosen = [samples[index] for index in sorted(draw.permutation(len(samples))[:RESPONSES].tolist())]
    queries = queries_of(chosen)
    index_of = {sample.id: index for index, sample in enumerate(samples)}
    least = max(LEAST_ANSWERS, round(LEAST_SHARE * len(queries)))
    found = []
    looked_at = 0
    for phrase in repeated_phrases([query.response for query in queries], least=least, most=SENTENCES):
        order = draw.permutation(len(phrase.flagged))
        holders = distinct((queries[phrase.flagged[index]] for index in order), ANSWERS)
        said = 0
        lost: dict[str, Evidence] = {}
        for batch in batches(holders, config.scoring.batch_size):
            prefix = model.encode(batch)
            masked = salient_masks(batch, prefix.visual_mask, evidence, WIDE_RATIO)
            plain, hidden = (
                _first_answers(model, each) for each in (prefix, prefix.with_masked(masked, model.mask_embedding))
            )
            says = torch.tensor([echoes(text, phrase.words) for text in plain])
            loses = says & ~torch.tensor([echoes(text, phrase.words) for text in hidden])
            said += int(says.sum())
            lost |= _evidence(model, prefix, batch, phrase, loses, evidence, config.scoring)
        progress(len(holders))
        looked_at += len(holders)
        if len(lost) >= max(LEAST_ANSWERS, LOST_SHARE * said) and 2 * said >= len(holders):
            members = sorted({index_of[key.rpartition("#")[0]] for key in lost})
            found.append((replace(phrase, flagged=tuple(members), elsewhere=len(phrase.flagged) - len(members)), lost))
    progress(SENTENCES * ANSWERS - looked_at)
    return found


def _first_answers(model: MDLM, prefix: Prefix) -> list[str]:
    """The most likely token of every slot at the first denoising step, as texts."""
    response = torch.full((len(prefix), model.gen_length), model.mask_token_id, device=prefix.embeds.device)
    with torch.no_grad():
        logits = model.denoise(prefix, response)
    logits[..., [*model.banned_token_ids, model.mask_token_id]] = -torch.inf
    return model.decode_responses(logits.argmax(-1).cpu())


def _evidence(
    model: MDLM,
    prefix: Prefix,
    batch: Sequence[Query],
    phrase: Phrase,
    rows: Tensor,
    evidence: Mapping[str, Evidence],
    config: ScoringConfig,
) -> dict[str, Evidence]:
    """New evidence of those of these rows (bool ``[B]``) that lose the phrase when one window is masked."""
    result = {}
    for row in rows.nonzero()[:, 0].tolist():
        query, before = batch[row], evidence[batch[row].key]
        # The most salient tokens lie all over the picture; what can be pasted is what lies together.
        inside = torch.from_numpy(_windows(token_boxes(model, before.locations, query.images)))  # [M, N]
        candidates = torch.zeros(1, len(inside), prefix.visual_mask.shape[1], dtype=torch.bool)
        candidates[0][:, prefix.visual_mask[row].cpu()] = inside
        candidates = candidates.to(prefix.embeds.device)
        one = prefix.select(torch.tensor([row], device=prefix.embeds.device))
        response = given_answers(model, one, [query])
        base, each = counterfactual_scores(model, one, response, candidates, batch_size=len(batch))
        best = candidates[:, int(each.argmax())]
        (text,) = _first_answers(model, one.with_masked(best, model.mask_embedding))
        if echoes(text, phrase.words):
            continue
        least = least_effect(base, each, config.kept_effect)
        kept = narrowed(model, one, response, best, least, batch_size=len(batch))
        suspicion = max(before.suspicion or 0.0, float(suspicion_of(base, each, config.mistake_weight)))
        tokens = kept[0, one.visual_mask[0]].nonzero()[:, 0].tolist()
        result[query.key] = replace(before, suspicion=suspicion, best_candidate=tuple(tokens))
    return result


def _windows(boxes: np.ndarray) -> np.ndarray:
    """Which tokens have their centres in each of the windows of `WIDE_RATIO` of the picture.

    Args:
        boxes: float ``[N, 4]``, where the tokens lie.

    Returns:
        bool ``[M, N]``.
    """
    side = math.sqrt(WIDE_RATIO)
    steps = 1 + math.ceil((1 - side) / (side / 4))
    corners = np.linspace(0, 1 - side, steps)
    x, y = (boxes[:, :2] + boxes[:, 2:]).T / 2
    across = (corners[:, None] <= x) & (x <= corners[:, None] + side)
    down = (corners[:, None] <= y) & (y <= corners[:, None] + side)
    return (down[:, None] & across[None]).reshape(-1, len(boxes))
