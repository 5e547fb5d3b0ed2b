"""Two groups among numbers and points, against arithmetic by hand and brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from disp.baselines.grouping import (
    principal_directions,
    silhouette,
    top_share,
    two_means,
    two_normals,
)


def spread(groups):
    return sum(((group - group.mean(0)) ** 2).sum() for group in groups if len(group))


def test_two_normals_find_what_was_drawn():
    draw = np.random.default_rng(0)
    values = np.concatenate((draw.normal(-3, 0.5, 300), draw.normal(4, 1.5, 700)))
    fit = two_normals(draw.permutation(values))
    np.testing.assert_allclose(fit.means, (-3, 4), atol=0.2)
    np.testing.assert_allclose(fit.deviations, (0.5, 1.5), atol=0.1)
    np.testing.assert_allclose(fit.weights, (0.3, 0.7), atol=0.02)


def test_two_normals_by_hand():
    fit = two_normals(np.array([5.0, 1.0, 5.0, 1.0, 5.0, 5.0]))
    np.testing.assert_allclose(fit.means, (1, 5))
    np.testing.assert_allclose(fit.weights, (1 / 3, 2 / 3))
    np.testing.assert_allclose(fit.deviations, 1e-3)  # the least variance
    np.testing.assert_allclose(fit.lower, (0, 1, 0, 1, 0, 0), atol=1e-12)


def test_values_that_are_all_alike_are_one_group():
    fit = two_normals(np.full(5, 0.7))
    np.testing.assert_array_equal(fit.means, (0.7, 0.7))


def test_principal_directions_of_long_and_of_wide_sets():
    # Spread 3 along (0.6, -0.8), 1 along (0.8, 0.6): the larger entry of a direction is positive.
    steps = np.array([[3, 0], [-3, 0], [0, 1], [0, -1.0]])
    points = steps @ np.array([[0.6, -0.8], [0.8, 0.6]])
    np.testing.assert_allclose(principal_directions(points, 2), [[-0.6, 0.8], [0.8, 0.6]], atol=1e-12)
    wide = np.zeros((2, 3))
    wide[:, 1] = (1, -1)
    np.testing.assert_allclose(principal_directions(wide, 1), [[0, 1, 0]], atol=1e-12)
    assert principal_directions(wide, 10).shape == (2, 3)


@pytest.mark.parametrize("seed", range(5))
def test_two_means_against_all_partitions(seed):
    points = np.random.default_rng(seed).normal(size=(8, 2)) + np.repeat([[0, 0], [2, 2]], (5, 3), axis=0)
    small, means = two_means(points, 0)
    least = min(spread((points[np.array(side)], points[~np.array(side)])) for side in product((False, True), repeat=8))
    assert spread((points[small], points[~small])) == pytest.approx(least)
    assert small.sum() <= 4
    np.testing.assert_allclose(means, (points[~small].mean(0), points[small].mean(0)))


def test_points_that_are_all_alike():
    points = np.ones((4, 3))
    small, means = two_means(points, 0)
    assert not small.any() or small.sum() <= 2
    assert silhouette(points, small, 0) == 0
    np.testing.assert_array_equal(means, np.ones((2, 3)))


def test_silhouette_by_hand():
    points = np.array([[0.0], [1.0], [4.0], [6.0]])
    group = np.array([False, False, True, True])
    # a = 1, 1, 2, 2; b = 5, 4, 3.5, 5.5
    expected = np.mean([4 / 5, 3 / 4, 1.5 / 3.5, 3.5 / 5.5])
    assert silhouette(points, group, 0) == pytest.approx(expected)
    assert silhouette(points, np.array([True, False, False, False]), 0) == pytest.approx(
        np.mean([0, (1 - 4) / 4, (4 - 2.5) / 4, (6 - 3.5) / 6])
    )


def test_silhouettes_of_a_sample_stand_for_all(monkeypatch):
    draw = np.random.default_rng(0)
    points = np.concatenate((draw.normal(0, 1, (300, 2)), draw.normal(6, 1, (100, 2))))
    group = np.arange(400) >= 300
    whole = silhouette(points, group, 0)
    monkeypatch.setattr("disp.baselines.grouping.SILHOUETTES", 100)
    assert silhouette(points, group, 0) == pytest.approx(whole, abs=0.03)


def test_the_top_share():
    assert top_share(np.array([3.0, 5, 5, 1]), 0.5).tolist() == [False, True, True, False]
    assert top_share(np.array([2.0, 2, 2, 2]), 0.25).tolist() == [True, False, False, False]
    assert top_share(np.arange(10.0), 0.3).sum() == 3  # 0.3 · 10 is a little less than 3 in floating point
    assert not top_share(np.arange(3.0), 0.3).any()
