"""Where to cut a list of suspicion scores when nobody has labelled anything."""

from __future__ import annotations

import numpy as np

from disp.suspicion.config import ScoringConfig


def suspicion_threshold(values: np.ndarray, least: float = ScoringConfig.least_suspicion) -> float:
    """Where suspicion stops being ordinary: the two-means cut of ``log(1 + s)``, but not below ``least``.

    Args:
        values: suspicion of each sample in nats, float ``[n]``.
        least: the lowest threshold.
    """
    cut = float(np.expm1(two_means_threshold(np.log1p(np.asarray(values, dtype=np.float64)))))
    return max(cut, least) if np.isfinite(cut) else least


def two_means_threshold(values: np.ndarray) -> float:
    """The cut that splits values into two groups with the least squared distance to the groups' means.

    Exact: all splits of the sorted values are compared. Equal values stay together, and an offset that all values have
    in common costs no digits.

    Args:
        values: float ``[n]``.

    Returns:
        A value between the two groups: those up to it are of the lower one. +inf where all values are equal.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if len(ordered) < 2 or ordered[0] == ordered[-1]:
        return float("inf")
    left = np.arange(1, len(ordered))
    right = len(ordered) - left
    shifted = ordered - ordered[0]
    below = np.cumsum(shifted)[:-1]
    above = shifted.sum() - below
    # The squared distance within groups is least where the one between them is greatest.
    between = left * right * (above / right - below / left) ** 2
    between[ordered[1:] == ordered[:-1]] = -1
    split = int(between.argmax())
    low, high = ordered[split], ordered[split + 1]
    middle = (low + high) / 2
    return float(middle if middle < high else low)  # between neighbours there is no number
