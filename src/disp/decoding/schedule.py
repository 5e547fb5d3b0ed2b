"""How many tokens each step commits."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import torch

from disp.decoding.names import Schedule
from disp.errors import DispError, unknown_name


def check_schedule(schedule: str | None, shift: float) -> None:
    """Raise `DispError` where there is no such schedule, or the shift is not positive."""
    if schedule is not None and schedule not in get_args(Schedule):
        raise unknown_name("schedule", schedule, get_args(Schedule))
    if not 0 < shift < math.inf:
        raise DispError(f"schedule_shift must be positive and finite, got {shift}")


def commit_quotas(slots: int, steps: int) -> list[int]:
    """How many tokens each step commits: as even as possible, the larger shares first, ``slots`` in all."""
    return [slots // steps + (step < slots % steps) for step in range(steps)]


def commit_schedule(slots: int, steps: int, schedule: str | None = None, shift: float = 3.0) -> list[int]:
    """How many tokens each step commits under one of LaViDa's schedules (arXiv 2505.16839), ``slots`` in all.

    The published decoder runs the counts of each schedule backwards, which is kept here.

    Args:
        slots: tokens to commit.
        steps: at most ``slots`` with a schedule.
        schedule: None for `commit_quotas`, "shift", "cosine" or "linear".
        shift: of the "shift" schedule; below 1 the first steps commit more, above 1 the last ones.
    """
    if schedule is None:
        return commit_quotas(slots, steps)
    if not 1 <= steps <= slots:
        raise ValueError(f"a schedule needs 1 to {slots} steps for {slots} slots, got {steps}")
    # 1. The part of the slots that is filled after each step; in float32, for the floor sees the last digit.
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float32)
    if schedule == "shift":
        parts = shift * times / (1 + (shift - 1) * times)
    elif schedule == "cosine":
        parts = (1 - torch.cos(math.pi * times)) / 2
    else:
        parts = times
    filled = [int(part) for part in (parts * slots).floor()]
    filled[-1] = slots  # rounding may leave out a slot
    # 2. At least one token a step, taken from the others in turn.
    counts = [max(after - before, 1) for before, after in pairwise(filled)]
    surplus, step = sum(counts) - slots, 0
    while surplus > 0:
        if counts[step] > 1:
            counts[step] -= 1
            surplus -= 1
        step = (step + 1) % steps
    # 3. Backwards.
    return counts[::-1]
