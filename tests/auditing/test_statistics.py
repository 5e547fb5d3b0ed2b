"""Tail probabilities, permutation tests and AUROC against enumeration."""

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disp.auditing.config import ProofConfig
from disp.auditing.statistics import area_under_curve, hypergeometric_tail, regrouping_p_value


@pytest.mark.parametrize("total", [1, 2, 5, 8])
def test_the_tail_is_what_counting_all_draws_gives(total):
    for marked in range(total + 1):
        for drawn in range(total + 1):
            draws = list(combinations(range(total), drawn))
            held = [sum(item < marked for item in draw) for draw in draws]
            for hits in range(drawn + 2):
                expected = sum(count >= hits for count in held) / len(draws)
                assert hypergeometric_tail(hits, drawn, marked, total) == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 400), st.data())
def test_the_tail_of_larger_counts_equals_exact_arithmetic(total, data):
    marked, drawn = data.draw(st.integers(0, total)), data.draw(st.integers(0, total))
    hits = data.draw(st.integers(0, total + 1))
    terms = (
        math.comb(marked, count) * math.comb(total - marked, drawn - count)
        for count in range(hits, min(drawn, marked) + 1)
        if drawn - count <= total - marked
    )
    expected = float(Fraction(sum(terms), math.comb(total, drawn)))
    assert hypergeometric_tail(hits, drawn, marked, total) == pytest.approx(expected, rel=1e-7)


def test_a_tail_too_small_for_a_float_of_ordinary_size_is_no_error():
    assert 0 <= hypergeometric_tail(5_000, 5_000, 5_000, 100_000) < 1e-300


def p_value(group, control):
    return regrouping_p_value(group, control, 0, ProofConfig().regroupings)


def _regroup(group, control):
    values = [*group, *control]
    as_high = [
        sum(values[index] for index in chosen) >= sum(group) - 1e-9
        for chosen in combinations(range(len(values)), len(group))
    ]
    return sum(as_high) / len(as_high)


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=4),
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=5),
)
def test_the_permutation_test_is_exact_where_all_regroupings_can_be_seen(group, control):
    assert p_value(np.array(group), np.array(control)) == pytest.approx(_regroup(group, control))


def test_drawn_regroupings_come_near_the_exact_value_and_are_never_zero():
    group, control = np.array([1.0, 0.5, 1.0, 0.25]), np.array([0.0, 0.5, 0.0, 1.0, 0.25, 0.0])
    exact = _regroup(group, control)
    found = [regrouping_p_value(group, control, seed, 200) for seed in range(40)]  # fewer than the 210 there are
    assert np.mean(found) == pytest.approx(exact, abs=0.02)
    assert regrouping_p_value(np.ones(4), np.zeros(6), 0, 200) >= 1 / 201


@pytest.mark.parametrize(("group", "control"), [([], [1.0]), ([1.0], []), ([], [])])
def test_a_comparison_without_both_sides_proves_nothing(group, control):
    assert p_value(np.array(group), np.array(control)) == 1.0


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_auroc_is_the_share_of_pairs_in_the_right_order(rows):
    scores = np.array([value for value, _ in rows], dtype=float)
    positive = np.array([kind for _, kind in rows])
    pairs = [(a, b) for a in scores[positive] for b in scores[~positive]]
    found = area_under_curve(scores, positive)
    if not pairs:
        assert math.isnan(found)
        return
    assert found == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs))
