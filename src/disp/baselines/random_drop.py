"""A control: random rows are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from disp.baselines.grouping import top_share
from disp.baselines.interface import Assumptions, Filter, Judgement
from disp.data.sample import Query
from disp.draws import generator
from disp.errors import DispError
from disp.models.interface import MDLM, Prefix


@dataclass(frozen=True)
class RandomDropConfig:
    """Parameters of the control.

    Attributes:
        dropped_share: share of the rows that is drawn; 0.2 as in BYE's comparison.
    """

    dropped_share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.dropped_share < 1:
            raise DispError(f"dropped_share must be in [0, 1), got {self.dropped_share}")


def measure(model: MDLM, prefix: Prefix, batch: Sequence[Query], config: RandomDropConfig, seed: int) -> Tensor:
    """A uniform draw for each sample, float64 ``[B, 1]``; its turns share it."""
    draws = [generator(seed, "random drop", query.sample_id).random() for query in batch]
    return torch.tensor(draws, dtype=torch.float64)[:, None]


def judge(values: np.ndarray, config: RandomDropConfig, seed: int) -> Judgement:
    """Drop the highest draws."""
    scores = values[:, 0]
    return Judgement(scores, top_share(scores, config.dropped_share), "rows were drawn at random")


RANDOM_DROP = Filter(
    name="random-drop",
    summary="Drops random rows: what a filter that knows nothing does.",
    source="control",
    port="Nothing.",
    config=RandomDropConfig,
    assumes=Assumptions(
        training="yes", earlier_checkpoint="to train from", global_triggers="no effect", text_triggers="no effect"
    ),
    measure=measure,
    judge=judge,
    pictures_only=False,
)
