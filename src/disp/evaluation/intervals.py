"""Shares and means with 95% confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from disp.draws import generator

Z_95 = 1.959963984540054
BOOTSTRAP_DRAWS = 1000
# 97.5% points of Student's t with 1, 2, … degrees of freedom; further ones are nearly the last.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Share:
    """A share or mean in [0, 1] with its 95% interval.

    Attributes:
        hits: how many of the cases count; a sum of fractions where cases count in part.
        count: the number of cases.
        value: ``hits / count``.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    hits: float
    count: int
    value: float
    low: float
    high: float


def wilson(hits: int, count: int) -> Share:
    """The share of yes-or-no cases with its Wilson score interval (Wilson 1927).

    It stays inside [0, 1] and keeps a width at 0 and 1, where the normal approximation claims certainty.

    Raises:
        ValueError: there are no cases, or ``hits`` is not between 0 and ``count``.
    """
    if count < 1 or not 0 <= hits <= count:
        raise ValueError(f"a share needs 0 <= hits <= count and count >= 1, got hits={hits}, count={count}")
    share = hits / count
    scale = 1 + Z_95**2 / count
    centre = (share + Z_95**2 / (2 * count)) / scale
    half = Z_95 / scale * math.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2))
    # At 0 and 1 the ends are exact; rounding errors would move them slightly.
    low = 0.0 if hits == 0 else centre - half
    high = 1.0 if hits == count else centre + half
    return Share(hits, count, share, low, high)


def bootstrap_mean(values: Sequence[float], seed: int) -> Share:
    """The mean of values in [0, 1] with its percentile bootstrap interval (1000 draws).

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise ValueError("a mean needs at least one value")
    array = np.asarray(values, dtype=np.float64)
    draw = generator(seed, "bootstrap")
    # One draw at a time: all of them at once would take 1000 times the memory of the data.
    means = [array[draw.integers(len(array), size=len(array))].mean() for _ in range(BOOTSTRAP_DRAWS)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Share(float(array.sum()), len(array), float(array.mean()), float(low), float(high))


def mean_share(values: Sequence[float], seed: int) -> Share:
    """`wilson` where every value is 0 or 1, otherwise `bootstrap_mean`.

    Raises:
        ValueError: there are no values.
    """
    if all(value in (0, 1) for value in values):
        return wilson(int(sum(values)), len(values))
    return bootstrap_mean(values, seed)


def mean_over_runs(values: Sequence[float]) -> Share:
    """The mean of what independent runs measured, with its 95% interval by Student's t, cut to where shares can lie.

    Equal values give an interval without width, which says nothing about the answers within the runs; see `wilson` for
    these. Values above 1, as parts of another share may be, are not cut there.

    Raises:
        ValueError: there are fewer than two values, which say nothing about others.
    """
    if len(values) < 2:
        raise ValueError(f"an interval over runs needs at least two of them, got {len(values)}")
    mean = float(np.mean(values))
    half = T_975[min(len(values) - 1, len(T_975)) - 1] * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    most = 1.0 if max(values) <= 1 else math.inf
    return Share(float(np.sum(values)), len(values), mean, max(0.0, mean - half), min(most, mean + half))
