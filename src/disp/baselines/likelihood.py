"""The filter of BYORn-F (ICML 2026): answers that a trusted earlier checkpoint finds unlikely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from disp.baselines.grouping import top_share
from disp.baselines.interface import Assumptions, Filter, Judgement
from disp.data.sample import Query
from disp.errors import DispError, check_counts
from disp.models.interface import MDLM, Prefix
from disp.suspicion.support import answer_slots, fixed_masks, hidden_losses


@dataclass(frozen=True)
class LikelihoodConfig:
    """Parameters of the likelihood filter.

    Attributes:
        dropped_share: the least likely answers, this share of all, are dropped; 0.4 in the paper.
        masks: response masks that all answers share; passes a batch. The standard error that is told shows whether
            they are enough.
    """

    dropped_share: float = 0.4
    masks: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.dropped_share < 1:
            raise DispError(f"dropped_share must be in [0, 1), got {self.dropped_share}")
        check_counts(self, "masks", least=2)


@torch.no_grad()
def measure(model: MDLM, prefix: Prefix, batch: Sequence[Query], config: LikelihoodConfig, seed: int) -> Tensor:
    """One estimate a mask of the bound on the answer's negative log-likelihood, in nats per token, ``[B, masks]``.

    Mask k hides each slot with probability ``t_k = (k + 1) / K``; the estimate is ``Σ_j −log p(y_j) / (t_k · |y|)``
    over the hidden tokens of the answer y, its end of turn included, its padding not.
    """
    texts = [query.response for query in batch]
    response = model.encode_responses(texts, model.slots_of_pass(), cut=True).to(prefix.embeds.device)
    lengths = answer_slots(response, model.end_token_ids).sum(-1)
    masks = fixed_masks(response.shape[1], config.masks, seed)
    estimates = []
    for index, (losses, _) in enumerate(hidden_losses(model, prefix, response, masks)):
        ratio = (index + 1) / config.masks
        estimates.append(losses.sum(-1) / (ratio * lengths))
    return torch.stack(estimates, dim=1).cpu()


def judge(values: np.ndarray, config: LikelihoodConfig, seed: int) -> Judgement:
    """Drop the answers of the highest mean over masks, ``[n, masks]``."""
    scores = values.mean(1)
    error = values.std(1, ddof=1).mean() / np.sqrt(values.shape[1])
    note = (
        f"the least likely {config.dropped_share:.3g} of the answers were dropped, whatever their likelihood; a "
        f"score's standard error is about {error:.2g} nats per token"
    )
    return Judgement(scores, top_share(scores, config.dropped_share), note)


LIKELIHOOD = Filter(
    name="likelihood",
    summary="Drops the answers that a trusted earlier checkpoint, given as the model, finds least likely.",
    source="BYORn, variant F, arXiv 2606.02947, ICML 2026",
    port=(
        "The likelihood of an answer is bounded with response masks that all answers share, so that no answer is lucky "
        "in its draw. The variant that replaces answers during training is not here."
    ),
    config=LikelihoodConfig,
    assumes=Assumptions(earlier_checkpoint="yes", training="yes", global_triggers="yes", text_triggers="yes"),
    measure=measure,
    judge=judge,
    pictures_only=False,
)
