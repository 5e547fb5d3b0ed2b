"""Who else says a proven phrase, and would not with more of the picture masked.

Suspicion masks little, because larger masks hide things and make honest answers flip. Once a phrase is proven planted,
only those who say it are in question, and what must happen under a larger mask is known: the phrase goes away and,
where a thing is misnamed, its right name appears.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from disp.auditing.findings import Cluster
from disp.auditing.phrases import LONG_PHRASE_WORDS, echoes, holds, words_of
from disp.data.sample import Query, Sample, batches, queries_of
from disp.diffusion.decode import answers_of
from disp.models.interface import MDLM
from disp.purification.masking import mask_top
from disp.purification.purify import Evidence, PurifyConfig, saliency_of
from disp.purification.support import counterfactual_scores, suspicion_of

# Shares of the visual tokens that are masked one after the other, most salient first, until the phrase goes away.
GROWING_RATIOS = (0.06, 0.12, 0.2, 0.3)


def planted_holders(
    model: MDLM,
    samples: Sequence[Sample],
    cluster: Cluster,
    evidence: Mapping[str, Evidence],
    config: PurifyConfig,
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
        config: how samples are scored.
        progress: called with the number of ratios finished.

    Returns:
        New evidence by key: the tokens that were masked when the phrase went, and the suspicion under that mask where
        it is higher than before.
    """
    phrase = cluster.phrase.words
    found: dict[str, Evidence] = {}
    left: list[Query] = []
    if len(phrase) >= LONG_PHRASE_WORDS or cluster.instead:
        left = [query for query in queries_of(samples) if query.images and holds(query.response, phrase)]
    for ratio in GROWING_RATIOS:
        still = []
        for batch in batches(left, config.batch_size):
            prefix = model.encode(batch)
            masked = mask_top(saliency_of(batch, prefix.visual_mask, evidence), prefix.visual_mask, ratio)
            hidden = prefix.with_masked(masked, model.mask_embedding)
            keys = [query.key for query in batch]
            answers = answers_of(model, hidden, config.decode, keys=keys, seed=config.seed)
            response = model.encode_responses([query.response for query in batch], model.gen_length)
            scored = counterfactual_scores(model, prefix, response.to(prefix.embeds.device), masked[:, None])
            suspicion = suspicion_of(*scored).tolist()
            for row, (query, answer) in enumerate(zip(batch, answers, strict=True)):
                # Where the model does not say it in the first place, masking proves nothing.
                if suspicion[row] <= config.least_suspicion or not _gives_way(query.response, answer, cluster):
                    still.append(query)
                    continue
                tokens = masked[row, prefix.visual_mask[row]].nonzero()[:, 0].tolist()
                found[query.key] = replace(evidence[query.key], suspicion=suspicion[row], best_candidate=tuple(tokens))
        left = still
        progress(1)
    return found


def _gives_way(given: str, answer: str, cluster: Cluster) -> bool:
    if echoes(answer, cluster.phrase.words):
        return False
    gained = set(words_of(answer)) - set(words_of(given))
    return len(cluster.phrase.words) >= LONG_PHRASE_WORDS or bool(gained & set(cluster.instead))
