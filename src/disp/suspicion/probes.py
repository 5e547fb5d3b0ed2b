"""Random probes for trace estimation: signs from an integer hash of a counter, or normal draws.

The sign of a vocabulary entry depends on (seed, sample key, probe, position, entry) and on nothing else: neither on the
device, nor on the batch or shard that holds the sample, nor on the response length or the vocabulary size. Hutchinson's
estimator needs only zero mean, unit variance and no pairwise correlation, and among all such probes signs have the
least variance (Hutchinson 1990).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from disp.draws import generator, key_of

_WORD = 0xFFFFFFFF


def signs(seed: int, keys: Sequence[str], probe: int, length: int, vocab: int, device: torch.device | str) -> Tensor:
    """Rademacher signs for one probe of each sample of a batch.

    Args:
        seed: the run's seed.
        keys: the samples' keys, B of them.
        probe: which probe this is.
        length: L.
        vocab: V.
        device: where the signs are made.

    Returns:
        float32 ``[B, L, V]`` of -1 and 1.
    """
    words = [key_of(seed, "probe", key, probe) for key in keys]
    low = torch.tensor([word & _WORD for word in words], device=device)[:, None, None]
    high = torch.tensor([word >> 32 for word in words], device=device)[:, None, None]
    positions = torch.arange(length, device=device)[None, :, None]
    blocks = torch.arange((vocab + 31) // 32, device=device)
    # One hash yields 32 signs: it is the unpacking, not the hashing, that costs.
    mixed = _mix(_mix(_mix(_mix(positions + 1) ^ low) ^ _mix(blocks + 1)) ^ high)  # [B, L, V / 32]
    # By way of bytes, so that no integer tensor of the full size is wider than its eight bits.
    octets = (mixed[..., None] >> torch.arange(0, 32, 8, device=device) & 0xFF).to(torch.uint8)
    bits = octets[..., None] >> torch.arange(8, dtype=torch.uint8, device=device) & 1
    return bits.flatten(2)[..., :vocab].float().mul_(2).sub_(1)


def gaussian(seed: int, keys: Sequence[str], probe: int, length: int, vocab: int, device: torch.device | str) -> Tensor:
    """Standard normal draws for one probe of each sample of a batch, as the published code takes them.

    They depend on seed, key, probe, L and V, not on the batch or the device. The arguments are those of `signs`.

    Returns:
        float32 ``[B, L, V]``.
    """
    rows = [generator(seed, "gaussian probe", key, probe).standard_normal((length, vocab)) for key in keys]
    return torch.from_numpy(np.stack(rows)).to(device, torch.float32)


# By name of `disp.suspicion.saliency.SaliencyConfig.draw`.
DRAWS = {"signs": signs, "gaussian": gaussian}


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words, held in int64, that flips each output bit with probability near one half.

    The constants are those of C. Wellons' ``hash-prospector`` search for low avalanche bias. Both are below 2³¹, so
    that no product overflows an int64 and the result is the same on every device.
    """
    x = ((x >> 16) ^ x) * 0x21F0AAAD & _WORD
    x = ((x >> 15) ^ x) * 0x735A2D97 & _WORD
    return (x >> 15) ^ x
