"""What an audit costs, in seconds and in forward passes of one sample."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from disp.auditing import wording
from disp.data.dataset import Dataset
from disp.data.sample import Query, queries_of
from disp.halving import in_parts
from disp.models.interface import MDLM

# Forward passes by which the cost of the audit is told in such passes, the first of which is not timed.
TIMED_PASSES = 4


def cost_of(model: MDLM, dataset: Dataset, batch_size: int, seconds: float, *, scored_before: bool) -> dict[str, Any]:
    """Seconds of the whole audit, and that in forward passes of one sample, timed side by side.

    Args:
        model: the model under audit.
        dataset: the set under audit.
        batch_size: turns of a timed pass.
        seconds: how long the audit took.
        scored_before: whether it was given its scores, which its seconds then leave out.
    """
    asked = [query for query in queries_of(dataset.samples) if query.images][:batch_size]
    batch, forward = next(in_parts(model, partial(_forward, model), asked))
    return {
        "seconds": seconds,
        "forward_equivalents_per_sample": seconds / len(dataset.samples) / forward,
        "detail": wording.cost(forward, len(batch), scored_before),
    }


def _forward(model: MDLM, batch: Sequence[Query]) -> float:
    """Seconds of a forward pass, by its rows."""
    prefix = model.encode(batch)
    response = torch.full((len(batch), model.slots_of_pass()), model.mask_token_id, device=prefix.embeds.device)
    with torch.no_grad():
        float(model.denoise(prefix, response).sum())  # a GPU is waited for
        begin = time.monotonic()
        for _ in range(TIMED_PASSES - 1):
            float(model.denoise(prefix, response).sum())
        return (time.monotonic() - begin) / (TIMED_PASSES - 1) / len(batch)
