"""Gradient token masking (ICML 2026, "Localize and Neutralize"): one gradient picks the visual tokens to blank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from disp.baselines.hidden import head_inputs
from disp.baselines.interface import OPTIONAL_TRAINING, Answering, Assumptions
from disp.data.sample import Query
from disp.errors import check_shares
from disp.models.interface import MDLM, Prefix
from disp.suspicion.masking import mask_top
from disp.suspicion.saliency import first_step
from disp.suspicion.support import check_finite


@dataclass(frozen=True)
class GtmConfig:
    """Parameters of gradient token masking.

    Attributes:
        ratio: share of the visual tokens that is blanked; 0.05 in the paper.
    """

    ratio: float = 0.05

    def __post_init__(self) -> None:
        check_shares(self, "ratio")


def token_scores(model: MDLM, prefix: Prefix) -> torch.Tensor:
    """``‖∂‖h‖ / ∂v_i‖`` of each visual token, h the mean hidden state of the response slots, all of them masked.

    Returns:
        float32 ``[B, P]``, 0 at other positions.

    Raises:
        DispError: the model does not show its hidden states; see `disp.baselines.hidden.head_inputs`.
    """
    with head_inputs(model) as seen:
        embeds, _ = first_step(model, prefix, model.gen_length)
    # Rows do not influence each other, so the gradient of the sum is each row's own.
    (gradient,) = torch.autograd.grad(seen[0].float().mean(1).norm(dim=-1).sum(), embeds)
    return gradient.float().norm(dim=-1).masked_fill(~prefix.visual_mask, 0)


def encode(model: MDLM, batch: Sequence[Query], config: GtmConfig, seed: int) -> Prefix:
    """The queries with the highest-scoring visual tokens set to zero."""
    prefix = model.encode(batch)
    scores = token_scores(model, prefix)
    check_finite(scores, [query.key for query in batch])
    blank = mask_top(scores, prefix.visual_mask, config.ratio)
    return replace(prefix, embeds=prefix.embeds.masked_fill(blank[..., None], 0))


GTM = Answering(
    name="gtm",
    summary="Sets the visual tokens to zero whose gradient of the answer's hidden state is largest.",
    source="Gradient token masking, Localize and Neutralize, ICML 2026; published against prompts written in pictures",
    port=(
        "The published pivot is the hidden state of the first word after the picture, which in a causal model has seen "
        "nothing of the answer. Here it is the mean over the response slots while all of them are masked."
    ),
    config=GtmConfig,
    assumes=Assumptions(training=OPTIONAL_TRAINING, gradients="yes", global_triggers="unknown"),
    encode=encode,
)
