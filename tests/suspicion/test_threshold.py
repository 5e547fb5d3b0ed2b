"""Thresholds against brute force and on shapes that occur."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from disp.suspicion.threshold import suspicion_threshold, two_means_threshold


def _cost(values, cut):
    low, high = values[values <= cut], values[values > cut]
    return sum(((part - part.mean()) ** 2).sum() for part in (low, high) if len(part))


@given(st.lists(st.floats(0, 100, allow_nan=False), min_size=2, max_size=30))
def test_two_means_is_the_best_of_all_splits(values):
    values = np.array(values)
    cut = two_means_threshold(values)
    if values.min() == values.max():
        assert cut == np.inf
        return
    best = min(_cost(values, other) for other in values if other < values.max())
    assert _cost(values, cut) <= best + 1e-6 * max(1.0, best)


def test_thresholds_stay_finite_and_above_the_least():
    assert suspicion_threshold(np.zeros(0)) == suspicion_threshold(np.zeros(5)) == 1.0
    assert suspicion_threshold(np.full(5, 30.0)) == 1.0
    cut = suspicion_threshold(np.array([0.0, 0.1, 0.2, 40.0, 50.0]))
    assert 0.2 < cut < 40
    assert suspicion_threshold(np.array([0.0, 0.1, 0.2, 40.0, 50.0]), least=45.0) == 45.0
    assert math.isfinite(suspicion_threshold(np.array([0.0, 1e-12])))
