"""The sampler "dim" of Dimple (arXiv 2505.16990): at least one slot a step, and all that are sure at once.

It goes from the part of the response that is really masked to the first later time of the grid that is worth at least
one slot. With a confidence threshold it commits every slot above that instead, if there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from disp.decoding.config import Decoded, check_parts
from disp.decoding.grid import GridConfig, Step, decode_on_grid, from_the_left, surest
from disp.models.interface import MDLM, Prefix


@dataclass(frozen=True)
class DimConfig(GridConfig):
    """Options of the sampler "dim": those of `GridConfig`, and one of its own.

    Attributes:
        confidence_threshold: fill every slot at least this confident; None to switch off.
    """

    # "origin" fills exactly the step's number of slots, "origin-ratio" each slot with the step's share as its chance.
    algorithms: ClassVar[tuple[str, ...]] = (
        *("origin", "origin-ratio", "autoregressive", "maskgit_plus", "topk_margin", "entropy"),
    )

    sampler: str = field(default="dim", init=False)
    confidence_threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parts(self, "confidence_threshold")

    def surer(self, threshold: float) -> dict[str, Any]:
        own = self.confidence_threshold
        return {"confidence_threshold": threshold if own is None else min(threshold, own)}


def decode_dim(
    model: MDLM, prefix: Prefix, config: DimConfig, *, keys: Sequence[str] | None = None, seed: int = 0
) -> Decoded:
    """Denoise a batch of responses; see `disp.decoding.grid.decode_on_grid`."""
    return decode_on_grid(model, prefix, config, _choose, keys=keys, seed=seed)


def dim_share(grid: np.ndarray, step: int, open_slots: int, total: int) -> np.float32:
    """The part of the open slots that step ``step`` commits.

    The grid is entered at the part that is masked, wherever the steps before have led, and followed to the first time
    that is worth a slot; the last time is worth all of them.

    Args:
        grid: as `disp.decoding.grid.time_grid` returns it.
        step: index of the step; times up to and including ``grid[step]`` are past.
        open_slots: slots that are open, at least one.
        total: slots that were open at first.
    """
    time = np.float32(open_slots) / np.float32(total)
    below = np.flatnonzero(grid < time)
    for later in grid[max(int(below[0]), step + 1) :] if len(below) else ():
        share = np.float32(1) - later / time
        if later > grid[-1] and int(np.float32(open_slots) * share) >= 1:
            return share
    return np.float32(1)


def _choose(confidence: Tensor, uniforms: Tensor | None, config: DimConfig, step: Step) -> Tensor:
    count = len(confidence)
    # 1. Confident decoding: whatever is above the threshold, if anything is.
    if config.confidence_threshold is not None:
        if step.is_last:
            return torch.arange(count, device=confidence.device)
        sure = (confidence > config.confidence_threshold).nonzero()[:, 0]
        if len(sure):
            return sure
    # 2. From the left.
    if config.algorithm == "autoregressive":
        return from_the_left(confidence, config, step)
    # 3. As many as the grid says.
    share = np.float32(1) if step.is_last else dim_share(step.grid, step.index, count, step.total)
    number = step.number(count, share, config)
    if config.algorithm == "origin" and uniforms is not None:
        return uniforms.argsort()[:number]
    if config.algorithm == "origin-ratio" and uniforms is not None:
        return (uniforms < float(share)).nonzero()[:, 0]
    return surest(confidence, number, uniforms, config)
