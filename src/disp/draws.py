"""Random draws keyed by what they are for, so that batch size, order, shards and resumption cannot change them."""

from __future__ import annotations

import hashlib

import numpy as np


def key_of(seed: int, *purpose: object) -> int:
    """A 64-bit integer that is a hash of the seed and the purpose, the same on every platform.

    Args:
        seed: the run's seed.
        purpose: what the draw is for, outermost first, for example ``("mask", sample_id, 3)``. Only the
            text form of each part counts, so use strings and integers.
    """
    text = "\x1f".join([str(seed), *(str(part) for part in purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def generator(seed: int, *purpose: object) -> np.random.Generator:
    """A NumPy generator for one purpose; see `key_of`."""
    return np.random.Generator(np.random.Philox(key_of(seed, *purpose)))
