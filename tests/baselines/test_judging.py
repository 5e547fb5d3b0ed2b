"""What filters decide, on small sets of numbers where the decision is known."""

from __future__ import annotations

import numpy as np
import pytest

from disp.baselines import bye, clustering, likelihood, purmm, random_drop, spectral
from disp.baselines.table import DEFENCES
from disp.errors import DispError


def test_spectral_scores_by_hand():
    # Far from the origin, so that only centred points have their largest spread along the second axis.
    values = np.array([[100.0, 0], [101, 0], [100, 0], [101, 0], [100.5, 10]])
    found = spectral.judge(values, spectral.SpectralConfig(assumed_rate=0.2), 0)
    np.testing.assert_allclose(found.scores, [4, 4, 4, 4, 64], atol=1e-6)  # (y - 2)²
    assert found.dropped.tolist() == [False] * 4 + [True]  # a share of 0.3 is one of five
    assert found.note == "the highest 0.3 of the scores were dropped, whatever they were"


def test_clustering_drops_a_small_cluster_that_is_apart():
    draw = np.random.default_rng(0)
    values = draw.normal(size=(40, 6))
    values[:8] += 12
    found = clustering.judge(values, clustering.ClusteringConfig(components=3), 0)
    assert found.dropped.tolist() == [True] * 8 + [False] * 32
    assert found.scores[:8].min() > 0 > found.scores[8:].max()
    assert "holds 0.2 of the rows" in found.note and "it was dropped" in found.note


@pytest.mark.parametrize("shift, poisoned", [(12, 20), (0, 8)])
def test_clustering_drops_nothing_from_halves_or_from_one_cloud(shift, poisoned):
    values = np.random.default_rng(0).normal(size=(40, 6))
    values[:poisoned] += shift
    config = clustering.ClusteringConfig(least_silhouette=0.25)
    found = clustering.judge(values, config, 0)
    assert not found.dropped.any() and "nothing was dropped" in found.note


def test_a_feature_of_large_scale_does_not_decide_the_clusters():
    values = np.random.default_rng(0).normal(size=(40, 6))
    values[:8] += 12
    config = clustering.ClusteringConfig()
    plain, scaled = (clustering.judge(values * scale, config, 0) for scale in (1, np.array([1e6, 1, 1, 1, 1, 1])))
    np.testing.assert_array_equal(plain.dropped, scaled.dropped)


def entropies(count=30, poisoned=6):
    """Three layers: the first and the last tell two groups apart, the one between does not."""
    draw = np.random.default_rng(0)
    values = draw.normal(0.9, 0.02, (count, 3))
    values[:poisoned, 0] -= 0.5
    values[:poisoned, 2] -= 0.3
    return values


def test_bye_keeps_the_layers_that_tell_two_groups_apart():
    values = entropies()
    found = bye.judge(values, bye.ByeConfig(), 0)
    assert found.dropped.tolist() == [True] * 6 + [False] * 24
    np.testing.assert_allclose(found.scores, -(values[:, 0] + values[:, 2]) / 2)
    assert found.note == "two groups are told apart in 2 of 3 layers"


def test_bye_finds_no_evidence_where_no_layer_does():
    for values in (entropies(poisoned=0), np.full((5, 3), 0.8)):
        found = bye.judge(values, bye.ByeConfig(), 0)
        assert not found.dropped.any()
        assert found.note == "in none of 3 layers are two groups told apart: no evidence, and nothing was dropped"
        np.testing.assert_allclose(found.scores, -values.mean(1))


def test_likelihood_by_hand():
    values = np.array([[1.0, 3], [5, 5], [2, 2], [9, 3], [0, 0]])
    found = likelihood.judge(values, likelihood.LikelihoodConfig(masks=2), 0)
    assert found.scores.tolist() == [2, 5, 2, 6, 0]
    assert found.dropped.tolist() == [False, True, False, True, False]
    # Standard deviations √2, 0, 0, √18, 0 have the mean 1.131; of two estimates each the error is that over √2.
    assert "standard error is about 0.8 nats per token" in found.note


def test_random_rows_are_a_share_of_all():
    values = np.random.default_rng(0).random((50, 1))
    assert random_drop.judge(values, random_drop.RandomDropConfig(0.2), 0).dropped.sum() == 10


def test_the_highest_of_three_groups():
    values = np.array([1.0, 9, 1.1, 5, 8.8, 5.2, 0.9])
    assert purmm.highest_group(values, 3).tolist() == [False, True, False, False, True, False, False]
    assert purmm.highest_group(values, 2).tolist() == [False, True, False, True, True, True, False]
    # One value among many that are alike, as a trigger is.
    assert purmm.highest_group(np.array([0.1] * 30 + [0.9]), 3).nonzero()[0].tolist() == [30]
    assert not purmm.highest_group(np.full(5, 0.2), 3).any()
    assert not purmm.highest_group(0.2 + np.arange(5) * 1e-9, 3).any()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("spectral", {"assumed_rate": 0.7}),
        ("spectral", {"factor": 0.0}),
        ("clustering", {"components": 0}),
        ("clustering", {"largest_share": 1.5}),
        ("clustering", {"least_silhouette": 2.0}),
        ("bye", {"least_separation": -1.0}),
        ("likelihood", {"dropped_share": 1.0}),
        ("likelihood", {"masks": 1}),
        ("random-drop", {"dropped_share": -0.1}),
        ("random-mask", {"ratio": 1.1}),
        ("least-salient", {"ratio": -0.1}),
        ("least-salient", {"probes": 0}),
        ("gtm", {"ratio": 2.0}),
        ("purmm", {"groups": 1}),
        ("jpeg", {"quality": 0}),
        ("blur", {"radius": 0.0}),
        ("shrink", {"scale": 1.2}),
    ],
)
def test_parameters_out_of_range_are_errors(name, wrong):
    with pytest.raises(DispError, match=next(iter(wrong))):
        DEFENCES[name].config(**wrong)
