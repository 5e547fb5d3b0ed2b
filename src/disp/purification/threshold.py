"""Where to cut a list of suspicion scores when nobody has labelled anything."""

from __future__ import annotations

import numpy as np


def two_means_threshold(values: np.ndarray) -> float:
    """The cut that splits values into two groups with the least squared distance to the groups' means.

    Exact: all splits of the sorted values are compared.

    Args:
        values: float ``[n]``.

    Returns:
        A value between the two groups; +inf where all values are equal.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if len(ordered) < 2 or ordered[0] == ordered[-1]:
        return float("inf")
    left = np.arange(1, len(ordered))
    right = len(ordered) - left
    below = np.cumsum(ordered)[:-1]
    above = ordered.sum() - below
    # The squared distance within groups is least where the one between them is greatest.
    between = left * right * (above / right - below / left) ** 2
    split = int(between.argmax())
    return float((ordered[split] + ordered[split + 1]) / 2)
