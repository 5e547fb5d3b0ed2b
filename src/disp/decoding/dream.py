"""The sampler "dream" of Dream (arXiv 2508.15487): the time grid alone says how many slots a step fills.

It commits ``int(open * (1 - t_{i+1} / t_i))`` slots at step i, often none at all in the first steps of a short answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from disp.decoding.config import Decoded, check_parts
from disp.decoding.grid import GridConfig, Step, decode_on_grid, from_the_left, surest
from disp.models.interface import MDLM, Prefix


@dataclass(frozen=True)
class DreamConfig(GridConfig):
    """Options of the sampler "dream": those of `GridConfig`, and one of its own.

    Attributes:
        step_ratio: only the first ``int(gen_length * step_ratio)`` steps of the grid are run, the last of which commits
            what is left; None for all of them.
    """

    algorithms: ClassVar[tuple[str, ...]] = ("origin", "autoregressive", "maskgit_plus", "topk_margin", "entropy")

    sampler: str = field(default="dream", init=False)
    step_ratio: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parts(self, "step_ratio")

    def fewer_steps(self, times: int) -> dict[str, Any]:
        part = {} if self.step_ratio is None else {"step_ratio": self.step_ratio / times}
        return {**super().fewer_steps(times), **part}

    @property
    def most_steps(self) -> int:
        if self.step_ratio is None:
            return self.steps
        return min(max(int(self.gen_length * self.step_ratio), 1), self.steps)


def decode_dream(
    model: MDLM, prefix: Prefix, config: DreamConfig, *, keys: Sequence[str] | None = None, seed: int = 0
) -> Decoded:
    """Denoise a batch of responses; see `disp.decoding.grid.decode_on_grid`."""
    return decode_on_grid(model, prefix, config, _choose, keys=keys, seed=seed)


def dream_share(grid: np.ndarray, step: int, *, last: bool) -> np.float32:
    """The part of the open slots that a step commits, in [0, 1].

    Args:
        grid: float32, as `disp.decoding.grid.time_grid` returns it.
        step: which step, from 0.
        last: whether it is the last one, which commits all.
    """
    return np.float32(1) if last else np.float32(1) - grid[step + 1] / grid[step]


def _choose(confidence: Tensor, uniforms: Tensor | None, config: DreamConfig, step: Step) -> Tensor:
    if config.algorithm == "autoregressive":
        return from_the_left(confidence, config, step)
    share = dream_share(step.grid, step.index, last=step.is_last)
    if config.algorithm == "origin" and uniforms is not None:
        return (uniforms < float(share)).nonzero()[:, 0]
    return surest(confidence, step.number(len(confidence), share, config), uniforms, config)
