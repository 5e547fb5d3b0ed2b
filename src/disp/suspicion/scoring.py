"""Saliency of every visual token for every training answer, and how suspicious the answer is.

Kept by the key of each turn, with the masks that follow from it: the most salient tokens, or the set of them without
which another answer wins.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from disp.data.sample import Query, Sample, batches, queries_of
from disp.errors import DispError
from disp.files import append_jsonl, read_finished_jsonl
from disp.models.interface import MDLM, Prefix
from disp.suspicion.candidates import candidate_sets
from disp.suspicion.config import ScoringConfig
from disp.suspicion.masking import Rounding, mask_top
from disp.suspicion.saliency import saliency
from disp.suspicion.support import counterfactual_scores, least_effect, narrowed, suspicion_of

# Image, tile, row and column of each visual token.
Locations = tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class Evidence:
    """What was found about one assistant turn.

    Attributes:
        key: the query's key.
        saliency: one score a visual token, in the order of the tokens; where separators are scored, one of each of
            them too.
        locations: image, tile, row and column of each visual token, -1 of separators.
        suspicion: in nats, see `disp.suspicion.support.suspicion_of`; None where it was not measured.
        best_candidate: the visual tokens of that candidate.
    """

    key: str
    saliency: Sequence[float]
    locations: Locations
    suspicion: float | None = None
    best_candidate: tuple[int, ...] = ()


def score(
    model: MDLM,
    samples: Sequence[Sample],
    config: ScoringConfig,
    file: Path | None = None,
    *,
    counterfactual: bool = True,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Evidence]:
    """Saliency of every visual token for every assistant turn, and how suspicious the given answer is.

    Args:
        model: the compromised model.
        samples: its fine-tuning set.
        config: see `ScoringConfig`.
        file: a JSONL file that results are appended to; turns that it already holds are not computed again.
        counterfactual: whether to measure suspicion too, at one forward pass a candidate.
        progress: called with the number of turns finished.

    Raises:
        DispError: the model's numbers overflow.
    """
    found: dict[str, Evidence] = {}
    # Pictures of one size have their tokens at the same places, which are kept once: they take most of the memory.
    layouts: dict[Locations, Locations] = {}

    def add(
        key: str, saliency: list[float], locations: list[list[int]], suspicion: float | None, best: list[int]
    ) -> Evidence:
        places = tuple((image, tile, line, column) for image, tile, line, column in locations)
        places = layouts.setdefault(places, places)
        found[key] = Evidence(key, array("d", saliency), places, suspicion, tuple(best))
        return found[key]

    for row in read_finished_jsonl(file) if file else ():
        add(row["key"], row["saliency"], row["locations"], row["suspicion"], row["best_candidate"])
    asked = queries_of(samples)
    queries = [query for query in asked if query.key not in found]
    progress(len(asked) - len(queries))
    for batch in batches(queries, config.batch_size):
        prefix = model.encode(batch)
        keys = [query.key for query in batch]
        scores = saliency(model, prefix, keys, config.saliency, config.gen_length, block_length=config.block_length)
        check_finite(scores, keys)
        suspicion, chosen = _suspicion(model, prefix, batch, scores, config) if counterfactual else (None, None)
        rows = []
        for index, key in enumerate(keys):
            visual = prefix.scored(config.saliency.separators)[index]
            each = add(
                key,
                [float(f"{value:.5g}") for value in scores[index, visual].tolist()],
                prefix.locations[index, visual].tolist(),
                None if suspicion is None else float(suspicion[index]),
                [] if chosen is None else chosen[index, visual].nonzero()[:, 0].tolist(),
            )
            rows.append({**asdict(each), "saliency": list(each.saliency)})
        if file:
            append_jsonl(file, rows)
        progress(len(batch))
    return found


def _suspicion(
    model: MDLM, prefix: Prefix, batch: Sequence[Query], scores: Tensor, config: ScoringConfig
) -> tuple[Tensor, Tensor]:
    """Suspicion ``[B]`` of the given answers and the candidate that attains it, bool ``[B, P]``."""
    response = given_answers(model, prefix, batch)
    candidates = candidate_sets(scores, prefix.visual_mask, config)
    base, each = counterfactual_scores(model, prefix, response, candidates, batch_size=config.batch_size)
    suspicion = suspicion_of(base, each, config.mistake_weight)
    check_finite(suspicion, [query.key for query in batch])
    # The smallest set that does nearly all of it: it takes least of the picture along when the answer is rewritten.
    least = least_effect(base, each, config.kept_effect)
    best = candidates[torch.arange(len(batch)), (each >= least[:, None]).int().argmax(-1)]
    rows = (suspicion > config.least_suspicion).nonzero()[:, 0]
    if len(rows):
        best[rows] = narrowed(
            model, prefix.select(rows), response[rows], best[rows], least[rows], batch_size=config.batch_size
        )
    return suspicion, best


def check_finite(values: Tensor, keys: Sequence[str]) -> None:
    """Make sure that what was computed of each row is a number; ``values`` ``[B, …]``, one key a row.

    Raises:
        DispError: it is not, because the model's numbers overflow or are damaged.
    """
    wrong = (~values.isfinite()).nonzero()
    if len(wrong):
        key = keys[int(wrong[0, 0])]
        raise DispError(f"the model's logits for {key} are not finite; load it in another precision (--dtype)")


def most_suspicious(sample: Sample, evidence: Mapping[str, Evidence]) -> Evidence:
    """The evidence of a sample's most suspicious turn: the trigger is in the image, which the turns share.

    Of equals the first that has visual tokens, if one has.
    """
    return max((evidence[key] for key in sample.keys), key=lambda each: (each.suspicion or 0.0, len(each.saliency) > 0))


def suspicious_query(sample: Sample, evidence: Mapping[str, Evidence]) -> Query:
    """The query whose answer is the sample's most suspicious one."""
    found = most_suspicious(sample, evidence)
    return next(query for query in sample.queries if query.key == found.key)


def sample_suspicion(sample: Sample, evidence: Mapping[str, Evidence]) -> float:
    """The highest suspicion among a sample's turns."""
    return most_suspicious(sample, evidence).suspicion or 0.0


def given_answers(model: MDLM, prefix: Prefix, batch: Sequence[Query]) -> Tensor:
    """The data's answers, as much of each as there are slots for, int64 ``[B, L]`` on the prefix's device."""
    texts = [query.response for query in batch]
    return model.encode_responses(texts, model.gen_length, cut=True).to(prefix.embeds.device)


def saliency_of(batch: Sequence[Query], visual_mask: Tensor, evidence: Mapping[str, Evidence]) -> Tensor:
    """The saliency that was found for a batch, where its tokens stand now.

    Args:
        batch: B queries.
        visual_mask: bool ``[B, P]``.
        evidence: by key.

    Returns:
        float32 ``[B, P]`` on the mask's device, 0 at other positions.
    """
    scores = torch.zeros(visual_mask.shape)
    for row, query in enumerate(batch):
        scores[row, visual_mask[row].cpu()] = torch.tensor(evidence[query.key].saliency, dtype=torch.float32)
    return scores.to(visual_mask.device)


def salient_masks(
    batch: Sequence[Query],
    visual_mask: Tensor,
    evidence: Mapping[str, Evidence],
    ratio: float,
    *,
    rounding: Rounding = "up",
) -> Tensor:
    """The most salient tokens, this share of each row's, bool ``[B, P]``.

    Args:
        batch: B queries.
        visual_mask: bool ``[B, P]``, what was scored.
        evidence: by key.
        ratio: share of them.
        rounding: see `disp.suspicion.masking.mask_top`.
    """
    return mask_top(saliency_of(batch, visual_mask, evidence), visual_mask, ratio, rounding=rounding)


def candidate_masks(visual_mask: Tensor, found: Sequence[Evidence]) -> Tensor:
    """The best candidate of each row's evidence, bool ``[B, P]``; ``visual_mask`` bool ``[B, P]``."""
    masked = torch.zeros_like(visual_mask)
    for row, each in enumerate(found):
        positions = visual_mask[row].nonzero()[:, 0]
        masked[row, positions[list(each.best_candidate)]] = True
    return masked


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
    """
    response = given_answers(model, prefix, batch)
    base, each = counterfactual_scores(model, prefix, response, masks, batch_size=len(batch))
    return suspicion_of(base[:, None], each[..., None], config.mistake_weight)
