import numpy as np
import pytest

from disp.evaluation.intervals import bootstrap_mean, mean_share, wilson


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
