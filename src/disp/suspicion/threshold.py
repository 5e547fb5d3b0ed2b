"""Where to cut a list of suspicion scores, or other numbers, when nobody has labelled anything."""

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

    It is exact; see `cuts_on_a_line`.

    Args:
        values: float ``[n]``.

    Returns:
        A value between the two groups: those up to it are of the lower one. +inf where all values are equal.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if len(ordered) < 2 or ordered[0] == ordered[-1]:
        return float("inf")
    (first,) = cuts_on_a_line(ordered, 2)
    low, high = ordered[first - 1], ordered[first]
    middle = (low + high) / 2
    return float(middle if middle < high else low)  # between neighbours there is no number


def cuts_on_a_line(ordered: np.ndarray, groups: int) -> list[int]:
    """Where k-means cuts numbers: the groups with the least squared distance to their means.

    Exact, by dynamic programming: k-means that moves means about may stop far from it. Equal values stay together, and
    an offset that all values have in common costs no digits.

    Args:
        ordered: float64 ``[n]``, growing, at least one.
        groups: how many; fewer come out where there are fewer distinct values.

    Returns:
        The place in ``ordered`` at which each group but the first begins, growing.
    """
    # 1. Places at which a group may begin or end, and the sums of the values before them.
    places = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1, [len(ordered)]])
    centred = ordered - ordered[0]
    centred -= centred.mean()
    sums = np.concatenate([[0.0], np.cumsum(centred)])[places]
    last = len(places) - 1

    # 2. The squared distance within groups is least where the sum of (Σ values)² / count over groups is greatest.
    def spread(begin: np.ndarray | int, end: int | np.ndarray) -> np.ndarray:
        found: np.ndarray = (sums[end] - sums[begin]) ** 2 / (places[end] - places[begin])
        return found

    best = np.full(last + 1, -np.inf)
    best[1:] = spread(0, np.arange(1, last + 1))
    begins = []  # by the number of groups, less two: where the last one begins, if it ends at this place
    for count in range(2, min(groups, last) + 1):
        grown, begin = np.full(last + 1, -np.inf), np.zeros(last + 1, int)
        # 3. The further a group ends, the further it begins, so each end halves the search of those beside it. Of the
        #    last group one end is asked for alone.
        ends = [(last if count == min(groups, last) else count, last, count - 1, last - 1)]
        while ends:
            low, high, least, most = ends.pop()
            end = (low + high) // 2
            tried = np.arange(least, min(most, end - 1) + 1)
            values = best[tried] + spread(tried, end)
            chosen = int(tried[values.argmax()])
            grown[end], begin[end] = values.max(), chosen
            if low < end:
                ends.append((low, end - 1, least, chosen))
            if end < high:
                ends.append((end + 1, high, chosen, most))
        best = grown
        begins.append(begin)
    # 4. Back from the last end.
    cuts, end = [], last
    for begin in reversed(begins):
        end = int(begin[end])
        cuts.append(int(places[end]))
    return cuts[::-1]
