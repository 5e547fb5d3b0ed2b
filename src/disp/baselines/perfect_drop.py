"""A control: exactly the planted rows are dropped, which the manifest of the attack names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from disp.auditing.truth import read_truth, truth_about
from disp.baselines.interface import Assumptions, Filter, Judgement
from disp.data.dataset import Dataset
from disp.data.sample import Query
from disp.errors import DispError
from disp.models.interface import MDLM, Prefix


@dataclass(frozen=True)
class PerfectDropConfig:
    """Parameters of the control.

    Attributes:
        manifest: the manifest.json of the planted attack; it must be given.
    """

    manifest: str = ""


def measure(model: MDLM, prefix: Prefix, batch: Sequence[Query], config: PerfectDropConfig, seed: int) -> Tensor:
    """1 for a planted row and 0 for another, float32 ``[B, 1]``."""
    names = _named_in(config.manifest)
    return torch.tensor([[float(query.sample_id in names)] for query in batch])


def check(config: PerfectDropConfig, dataset: Dataset) -> None:
    """Make sure that it is known which rows were planted.

    Raises:
        DispError: no manifest is given, or it is none of an attack on this dataset.
    """
    if not config.manifest:
        raise DispError("perfect-drop needs the manifest of the planted attack: --set manifest=PATH")
    truth_about(dataset, Path(config.manifest))


@lru_cache
def _named_in(manifest: str) -> frozenset[str]:
    return read_truth(Path(manifest))


def judge(values: np.ndarray, config: PerfectDropConfig, seed: int) -> Judgement:
    """Drop the planted rows."""
    dropped, named = values[:, 0] > 0, len(_named_in(config.manifest))
    note = "the rows that the manifest names were dropped"
    if dropped.sum() < named:
        note = f"{dropped.sum()} of the {named} rows that the manifest names are there, and were dropped"
    return Judgement(values[:, 0], dropped, note)


PERFECT_DROP = Filter(
    name="perfect-drop",
    summary="Drops exactly the planted rows: the most that a filter can do.",
    source="control",
    port="Nothing.",
    config=PerfectDropConfig,
    check=check,
    assumes=Assumptions(
        clean_data="all of it: it is told",
        training="yes",
        earlier_checkpoint="to train from",
        global_triggers="yes",
        text_triggers="yes",
    ),
    measure=measure,
    judge=judge,
    pictures_only=False,
)
