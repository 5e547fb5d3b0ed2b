"""Who else says a proven phrase, and would not with more of the picture masked.

Suspicion masks little, because larger masks hide things and make honest answers flip. Once a phrase is proven planted,
only those who say it are in question, and what must happen under a larger mask is known: the phrase goes away and,
where a thing is misnamed, its right name appears.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from disp.auditing.findings import AuditConfig, Cluster
from disp.auditing.phrases import LONG_PHRASE_WORDS, echoes, holds, words_of
from disp.data.sample import Query, Sample, batches, queries_of
from disp.decoding.generate import answers_of
from disp.models.interface import MDLM
from disp.suspicion.scoring import Evidence, salient_masks, suspicion_under

# Shares of the visual tokens that are masked one after the other, most salient first, until the phrase goes away.
GROWING_RATIOS = (0.06, 0.12, 0.2, 0.3)


def planted_holders(
    model: MDLM,
    samples: Sequence[Sample],
    cluster: Cluster,
    evidence: Mapping[str, Evidence],
    config: AuditConfig,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Evidence]:
    """Answers that hold a cluster's phrase, and lose it when more of the most salient tokens are masked.

    A short phrase may be honest: it counts only where one of `Cluster.instead` takes its place.

    Args:
        model: the model under audit.
        samples: those to look through.
        cluster: of a phrase that was proven.
        evidence: of every turn.
        config: how samples are scored and answers decoded.
        progress: called with the number of answers finished.

    Returns:
        New evidence by key: the tokens that were masked when the phrase went, and the suspicion under that mask.
    """
    phrase = cluster.phrase.words
    found: dict[str, Evidence] = {}
    left: list[Query] = []
    if len(phrase) >= LONG_PHRASE_WORDS or cluster.instead:
        left = [query for query in queries_of(samples) if query.images and holds(query.response, phrase)]
        # Where an answer is longer than the response slots, what comes after them is never said.
        said = model.decode_responses(
            model.encode_responses([query.response for query in left], model.gen_length, cut=True)
        )
        left = [query for query, text in zip(left, said, strict=True) if holds(text, phrase)]
    for batch in batches(left, config.batch_size):
        prefix = model.encode(batch)
        masks = [salient_masks(batch, prefix.visual_mask, evidence, ratio) for ratio in GROWING_RATIOS]
        suspicion = suspicion_under(model, prefix, batch, torch.stack(masks, dim=1), config.scoring)
        for masked, values in zip(masks, suspicion.unbind(1), strict=True):
            # Where the model does not say it in the first place, masking proves nothing.
            rows = [
                row
                for row, query in enumerate(batch)
                if query.key not in found and values[row] > config.scoring.least_suspicion
            ]
            if not rows:
                continue
            index = torch.tensor(rows, device=masked.device)
            hidden = prefix.select(index).with_masked(masked[index], model.mask_embedding)
            keys = [batch[row].key for row in rows]
            answers = answers_of(model, hidden, config.decode, keys=keys, seed=config.seed)
            for row, answer in zip(rows, answers, strict=True):
                query = batch[row]
                if _gives_way(query.response, answer, cluster):
                    tokens = tuple(masked[row, prefix.visual_mask[row]].nonzero()[:, 0].tolist())
                    found[query.key] = replace(evidence[query.key], suspicion=float(values[row]), best_candidate=tokens)
        progress(len(batch))
    return found


def _gives_way(given: str, answer: str, cluster: Cluster) -> bool:
    if echoes(answer, cluster.phrase.words):
        return False
    gained = set(words_of(answer)) - set(words_of(given))
    return len(cluster.phrase.words) >= LONG_PHRASE_WORDS or bool(gained & set(cluster.instead))
