"""What settings of scoring are refused, and that what they offer is there."""

from typing import get_args

import pytest

from disp.errors import DispError
from disp.purification.config import PurifyConfig
from disp.purification.guard import GuardConfig
from disp.suspicion.config import MASK_RATIO, PROBES, Draw, SaliencyConfig, ScoringConfig
from disp.suspicion.probes import DRAWS


@pytest.mark.parametrize("name", ["mask_ratio", "sliced_share", "kept_effect"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_shares_are_shares(name, value):
    with pytest.raises(DispError, match=rf"{name} must be in \[0, 1\], got {value}"):
        ScoringConfig(**{name: value})


@pytest.mark.parametrize("name", ["candidates", "half_slices", "batch_size"])
def test_counts_are_at_least_one(name):
    with pytest.raises(DispError, match=f"{name} must be at least 1, got 0"):
        ScoringConfig(**{name: 0})


def test_probes_are_as_many_as_a_ranking_needs_where_it_decides_alone_and_fewer_where_it_proposes():
    assert SaliencyConfig().probes == PROBES["isotropic"] > ScoringConfig().saliency.probes


def test_every_draw_that_can_be_named_can_be_made():
    assert set(get_args(Draw)) == set(DRAWS)


def test_the_share_to_mask_has_one_default():
    assert ScoringConfig().mask_ratio == PurifyConfig().mask_ratio == GuardConfig().mask_ratio == MASK_RATIO
