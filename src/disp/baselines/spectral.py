"""Spectral signatures (Tran, Li and Madry, 2018): outliers along the direction in which hidden states spread most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from disp.baselines.grouping import principal_directions, top_share
from disp.baselines.hidden import response_features
from disp.baselines.interface import Assumptions, Filter, Judgement
from disp.data.sample import Query
from disp.errors import DispError
from disp.models.interface import MDLM, Prefix


@dataclass(frozen=True)
class SpectralConfig:
    """Parameters of spectral signatures.

    Attributes:
        assumed_rate: the share of poisoned rows that is assumed; 0.1 is what most attacks on such models are measured
            at, and makes the share that is dropped the 15% of BackdoorBench and BackdoorBox.
        factor: so many times that share is dropped; 1.5 in the paper.
    """

    assumed_rate: float = 0.1
    factor: float = 1.5

    def __post_init__(self) -> None:
        if not (self.assumed_rate > 0 and self.factor > 0 and self.assumed_rate * self.factor < 1):
            raise DispError(
                "assumed_rate and factor must be positive and their product, the share that is dropped, below 1; got "
                f"{self.assumed_rate} and {self.factor}"
            )


def measure(model: MDLM, prefix: Prefix, batch: Sequence[Query], config: SpectralConfig, seed: int) -> Tensor:
    """The mean hidden state of the response slots, float32 ``[B, d]``."""
    return response_features(model, prefix)


def judge(values: np.ndarray, config: SpectralConfig, seed: int) -> Judgement:
    """Score the features ``[n, d]``, centred, by the square of their share in the first principal direction."""
    centred = values - values.mean(0)
    scores = (centred @ principal_directions(centred, 1)[0]) ** 2
    share = config.factor * config.assumed_rate
    dropped = top_share(scores, share)
    return Judgement(scores, dropped, f"the highest {share:.3g} of the scores were dropped, whatever they were")


SPECTRAL = Filter(
    name="spectral",
    summary="Drops the rows whose hidden states lie farthest out along the direction in which all of them spread most.",
    source="Tran, Li and Madry, Spectral Signatures in Backdoor Attacks, NeurIPS 2018",
    port=(
        "Free text has no classes, so all rows are one group. The feature is the mean hidden state of the response "
        "slots while all of them are masked, and it is centred, as in the paper; public toolkits do not centre it."
    ),
    config=SpectralConfig,
    assumes=Assumptions(training="yes", earlier_checkpoint="to train from", text_triggers="unknown"),
    measure=measure,
    judge=judge,
)
