import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disp.report.histogram import HEIGHT_PX, TOP_PX, histogram

SCORES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)


@settings(deadline=None)
@given(SCORES, st.floats(-1e6, 1e6))
def test_every_score_is_in_one_bar_on_its_side_of_the_threshold(scores, threshold):
    chart = histogram(scores, threshold)
    spread = max(scores) - min(scores)
    assert sum(bar.count for bar in chart.bars) == len(scores)
    beyond = sum(bar.count for bar in chart.bars if bar.flagged)
    # Scores within rounding of the edge may fall to either side.
    slack = 1e-6 * max(1.0, spread, abs(threshold))
    assert sum(score >= threshold + slack for score in scores) <= beyond
    assert beyond <= sum(score >= threshold - slack for score in scores)
    assert chart.bars[0].left == 0
    assert math.isclose(chart.bars[-1].left + chart.bars[-1].width, 100)


def test_bars_are_those_of_numpy():
    scores = np.random.default_rng(0).normal(size=500)
    chart = histogram(scores.tolist(), 1.25)
    edges = [bar.low for bar in chart.bars] + [chart.bars[-1].high]
    assert [bar.count for bar in chart.bars] == np.histogram(scores, edges)[0].tolist()
    assert any(math.isclose(edge, 1.25) for edge in edges)
    assert sum(bar.count for bar in chart.bars if bar.flagged) == (scores >= 1.25).sum()


def test_one_sample_in_a_thousand_is_seen():
    chart = histogram([0.0] * 1000 + [1.0], 0.5)
    assert chart.bars[0].height == HEIGHT_PX and chart.bars[-1].height > 20
    assert [tick.text for tick in chart.y_ticks] == ["1", "10", "100", "1,000"]
    assert all(TOP_PX <= tick.place <= TOP_PX + HEIGHT_PX for tick in chart.y_ticks)


def test_ticks_are_round_numbers_at_their_places():
    chart = histogram([0.0, 10.0], None)
    assert [(tick.text, round(tick.place)) for tick in chart.x_ticks] == [
        ("0", 0), ("2.5", 25), ("5", 50), ("7.5", 75), ("10", 100)
    ]  # fmt: skip
    assert chart.threshold is None and not any(bar.flagged for bar in chart.bars)


@pytest.mark.parametrize("scores", [[3.0], [3.0, 3.0], [0.0], [-1e-9, 1e-9], [None, 1.0, float("nan")]])
def test_few_or_equal_scores(scores):
    chart = histogram(scores, 1.0)
    assert sum(bar.count for bar in chart.bars) == len([s for s in scores if s is not None and s == s])


def test_no_score_is_no_chart():
    assert histogram([], 1.0) is None
    assert histogram([None, float("inf")], 1.0) is None


def test_a_threshold_out_of_sight_is_not_drawn():
    chart = histogram([0.0, 1.0], 7.0)
    assert chart.threshold is None and not any(bar.flagged for bar in chart.bars)
    assert all(bar.flagged for bar in histogram([0.0, 1.0], -7.0).bars)
