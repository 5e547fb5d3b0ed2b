"""Thresholds against brute force and on shapes that occur."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disp.suspicion.threshold import cuts_on_a_line, suspicion_threshold, two_means_threshold


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


@pytest.mark.parametrize(("count", "offset"), [(11, 1e6), (1001, 1e14)])
@pytest.mark.parametrize("seed", range(5))
def test_an_offset_that_all_values_share_costs_no_digits(seed, count, offset):
    values = np.random.default_rng(seed).integers(0, 100, count) + offset
    cut = two_means_threshold(values)
    apart = values - offset
    least = min(_cost(apart, other) for other in set(apart) - {apart.max()})
    assert _cost(apart, cut - offset) == pytest.approx(least)
    assert values.min() <= cut < values.max()


@given(
    st.lists(st.one_of(st.integers(0, 5), st.floats(0, 100, allow_nan=False)), min_size=1, max_size=11),
    st.integers(1, 5),
)
def test_groups_on_a_line_are_the_best_of_all(values, groups):
    ordered = np.sort(np.array(values, dtype=np.float64))
    cuts = cuts_on_a_line(ordered, groups)
    count = min(groups, len(set(values)))
    assert len(cuts) == count - 1 and all(ordered[cut - 1] < ordered[cut] for cut in cuts)

    def within(cuts):
        return sum(((part - part.mean()) ** 2).sum() for part in np.split(ordered, cuts))

    best = min(within(each) for each in combinations(range(1, len(ordered)), count - 1))
    assert within(cuts) <= best + 1e-6 * max(1.0, best)


def test_equal_values_stay_together_and_neighbours_are_told_apart():
    assert two_means_threshold(np.array([0.0] * 50 + [5.0] * 50)) == 2.5
    for low in (0.1, 0.3, 1e9):
        high = np.nextafter(low, np.inf)
        values = np.array([low, high, low, high])
        assert low <= two_means_threshold(values) < high
        assert two_means_threshold(np.array([low, high, high])) == two_means_threshold(np.array([high, low, low]))


def test_thresholds_stay_finite_and_above_the_least():
    assert suspicion_threshold(np.zeros(0)) == suspicion_threshold(np.zeros(5)) == 1.0
    assert suspicion_threshold(np.full(5, 30.0)) == 1.0
    cut = suspicion_threshold(np.array([0.0, 0.1, 0.2, 40.0, 50.0]))
    assert 0.2 < cut < 40
    assert suspicion_threshold(np.array([0.0, 0.1, 0.2, 40.0, 50.0]), least=45.0) == 45.0
    assert math.isfinite(suspicion_threshold(np.array([0.0, 1e-12])))
