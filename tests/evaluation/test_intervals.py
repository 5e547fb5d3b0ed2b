import numpy as np
import pytest

from disp.evaluation.intervals import T_975, bootstrap_mean, mean_over_runs, mean_share, wilson


def test_wilson_against_published_values():
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
    for hits, count, low, high in [
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718),
    ]:  # fmt: skip
        share = wilson(hits, count)
        assert (share.low, share.high) == pytest.approx((low, high), abs=5e-5)
        assert (share.hits, share.count, share.value) == (hits, count, hits / count)


def test_wilson_is_symmetric_and_holds_its_ends():
    a, b = wilson(3, 10), wilson(7, 10)
    assert (a.low, a.high) == pytest.approx((1 - b.high, 1 - b.low))
    assert wilson(0, 5).low == 0.0
    assert wilson(5, 5).high == 1.0
    assert wilson(5, 5).low < 1


@pytest.mark.parametrize(("hits", "count"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(hits, count):
    with pytest.raises(ValueError, match=f"hits={hits}, count={count}"):
        wilson(hits, count)


def test_bootstrap_mean_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).uniform(size=400)
    share = bootstrap_mean(values, seed=1)
    half = 1.96 * values.std() / 20
    assert share.value == pytest.approx(values.mean())
    assert share.hits == pytest.approx(values.sum())
    assert (share.low, share.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.006)


def test_bootstrap_mean_depends_on_the_seed_alone():
    values = [0.0, 0.25, 1.0, 0.5]
    assert bootstrap_mean(values, 3) == bootstrap_mean(tuple(values), 3)
    assert bootstrap_mean(values, 3) != bootstrap_mean([*values, 0.7], 3)
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_mean([], 0)


def test_mean_share_takes_wilson_for_yes_or_no_cases_only():
    assert mean_share([0.0, 1.0, 1.0], 0) == wilson(2, 3)
    assert mean_share([0.0, 0.5, 1.0], 7) == bootstrap_mean([0.0, 0.5, 1.0], 7)


def test_students_points_are_those_of_its_distribution():
    for freedom in (1, 2, 5, 30):
        point = T_975[freedom - 1]
        # The density of t, substituted by t = √ν · tan θ, is cos^(ν − 1) θ: what lies within ± the point is 95%.
        angles = np.linspace(0, np.pi / 2, 200_001)
        density = np.cos(angles) ** (freedom - 1)
        inside = angles <= np.arctan(point / np.sqrt(freedom))
        assert density[inside].sum() / density.sum() == pytest.approx(0.95, abs=2e-4)


def test_a_mean_over_runs_stays_where_shares_can_lie():
    found = mean_over_runs([0.9, 1.0])
    assert (found.value, found.count, found.high) == (pytest.approx(0.95), 2, 1.0)
    assert found.low == pytest.approx(0.95 - 12.706 * 0.05)
    assert mean_over_runs([0.99, 1.03]).high > 1.03  # a part of another share may be more than all of it
    with pytest.raises(ValueError, match="at least two"):
        mean_over_runs([0.5])
