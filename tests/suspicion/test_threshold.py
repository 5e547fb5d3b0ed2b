"""Thresholds against brute force and on shapes that occur."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from disp.suspicion.threshold import two_means_threshold


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
