"""Whether masking random tokens would make answers as suspicious: a check of the measure, which decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from disp.auditing.config import AuditConfig
from disp.auditing.result import Audit
from disp.data.sample import Query, Sample, queries_of
from disp.draws import generator
from disp.halving import fitting
from disp.models.interface import MDLM
from disp.suspicion.candidates import candidate_ranks
from disp.suspicion.evidence import Evidence
from disp.suspicion.scoring import given_answers
from disp.suspicion.support import counterfactual_scores, suspicion_of


def random_control(model: MDLM, above: Sequence[Sample], result: Audit, config: AuditConfig) -> tuple[int, int]:
    """Of some samples above the threshold, how many stay there with random tokens masked instead.

    Args:
        model: the model under audit.
        above: samples above the threshold; the first of them with a picture are taken.
        result: the audit's, for evidence and threshold.
        config: how the set was audited, and how many samples are taken.

    Returns:
        How many stay, and how many were taken.

    Raises:
        DispError: the model's numbers overflow.
    """
    chosen = [sample for sample in above if sample.images][: config.shown.random_control]

    def without_random(batch: Sequence[Query]) -> list[float]:
        prefix = model.encode(batch)
        response = given_answers(model, prefix, batch)
        each_count = [len(candidate_ranks(visual, config.scoring)) for visual in prefix.visual_mask.sum(-1).tolist()]
        sets = []
        for number in range(max(each_count)):
            keys = [f"{query.key}/{number}" for query in batch]
            # As many random tokens as the answer hangs on.
            masked = _random_like(prefix.visual_mask, batch, result.evidence, keys, config.seed)
            masked[[row for row, count in enumerate(each_count) if number >= count]] = False
            sets.append(masked)
        base, each = counterfactual_scores(model, prefix, response, torch.stack(sets, dim=1), batch_size=len(batch))
        found = suspicion_of(base, each, config.scoring.mistake_weight, [query.key for query in batch])
        values: list[float] = found.tolist()
        return values

    stay: dict[str, float] = {}
    # Where a picture comes in a later turn, an earlier one has nothing to mask.
    queries = [query for query in queries_of(chosen) if query.images]
    for batch, values in fitting(model, without_random, queries, config.scoring.batch_size):
        for query, value in zip(batch, values, strict=True):
            stay[query.sample_id] = max(stay.get(query.sample_id, 0.0), value)
    return sum(stay[sample.id] > result.threshold for sample in chosen), len(chosen)


def _random_like(
    visual_mask: Tensor, batch: Sequence[Query], evidence: Mapping[str, Evidence], keys: Sequence[str], seed: int
) -> Tensor:
    masked = torch.zeros_like(visual_mask)
    for row, (query, key) in enumerate(zip(batch, keys, strict=True)):
        positions = visual_mask[row].nonzero()[:, 0]
        count = max(1, len(evidence[query.key].hangs_on))
        order = generator(seed, "random candidate", key).permutation(len(positions))[:count]
        masked[row, positions[torch.from_numpy(order).to(positions.device)]] = True
    return masked
