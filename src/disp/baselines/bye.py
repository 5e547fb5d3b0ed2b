"""BYE (Rong et al., NeurIPS 2025): rows whose answers attend to few visual tokens, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from disp.baselines.attention import attention_of
from disp.baselines.grouping import two_normals
from disp.baselines.interface import Assumptions, Filter, Judgement
from disp.data.sample import Query
from disp.errors import check_not_negative
from disp.models.interface import MDLM, Prefix

# Inside the logarithm, as in the published code.
EPSILON = 1e-8


@dataclass(frozen=True)
class ByeConfig:
    """Parameters of BYE.

    Attributes:
        least_separation: a layer counts if the means of its two groups are farther apart than this many times the sum
            of their standard deviations; 2.0 in the published code.
    """

    least_separation: float = 2.0

    def __post_init__(self) -> None:
        check_not_negative(self, "least_separation")


def measure(model: MDLM, prefix: Prefix, batch: Sequence[Query], config: ByeConfig, seed: int) -> Tensor:
    """Entropy of the attention on visual tokens in each layer, as a share of the largest, float32 ``[B, layers]``."""

    def entropy(weights: Tensor, row: int) -> Tensor:
        visual = prefix.visual_mask[row]
        seen = weights.mean((0, 1))[: len(visual)][visual]
        seen = seen / seen.sum()
        # Pictures of several tiles have more tokens; the logarithm of their number is the largest entropy.
        most = torch.log(torch.tensor(float(max(len(seen), 2))))
        return -(seen * torch.log(seen + EPSILON)).sum() / most.to(seen.device)

    return attention_of(model, prefix, entropy)


def judge(values: np.ndarray, config: ByeConfig, seed: int) -> Judgement:
    """Drop the group of low mean entropy, over the layers in which two groups are told apart, ``[n, layers]``."""
    fits = [two_normals(layer) for layer in values.T]
    kept = [
        index
        for index, fit in enumerate(fits)
        if fit.means[1] - fit.means[0] > config.least_separation * fit.deviations.sum()
    ]
    if not kept:
        note = f"in none of {len(fits)} layers are two groups told apart: no evidence, and nothing was dropped"
        return Judgement(-values.mean(1), np.zeros(len(values), bool), note)
    mean = values[:, kept].mean(1)
    dropped = two_normals(mean).lower > 0.5
    return Judgement(-mean, dropped, f"two groups are told apart in {len(kept)} of {len(fits)} layers")


BYE = Filter(
    name="bye",
    summary="Drops the rows whose answers attend to few visual tokens, in the layers where rows form two groups.",
    source="Rong et al., BYE (Believe Your Eyes), NeurIPS 2025",
    port=(
        "There is no first generated token: the attention of all response slots is averaged while all of them are "
        "masked. Entropy is a share of its largest value, for pictures differ in the number of tokens. Where no layer "
        "tells two groups apart, nothing is dropped; the published code fails there."
    ),
    config=ByeConfig,
    assumes=Assumptions(training="yes", earlier_checkpoint="to train from", attention="yes", global_triggers="no"),
    measure=measure,
    judge=judge,
)
