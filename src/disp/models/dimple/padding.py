"""How much padding follows an answer in Dimple's training."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def padded_lengths(clean: Tensor, padding: int, draws: Tensor) -> Tensor:
    """How many slots of each answer there are: the answer and a random number of padding tokens, at least one.

    At most up to the next power of two below 16, and to the next multiple of 16 from there on, as published.

    Args:
        clean: int64 ``[B, L]``.
        padding: its id; the first one ends an answer.
        draws: float ``[B]`` in [0, 1).

    Returns:
        int64 ``[B]``, at most L.
    """
    slots = clean.shape[1]
    lengths = []
    for row, draw in zip(clean.tolist(), draws.tolist(), strict=True):
        count = row.index(padding) if padding in row else slots
        most = 1 << count.bit_length() if count < 16 else (count // 16 + 1) * 16
        lengths.append(min(count + 1 + math.floor(draw * (most - count)), slots))
    return torch.tensor(lengths, device=clean.device)
