"""What settings of a purification are refused."""

import pytest

from disp.errors import DispError
from disp.purification.config import PurifyConfig
from disp.suspicion.config import SaliencyConfig, ScoringConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "some"}, "unknown mode 'some'; choose one of all, random, selective"),
        ({"mask_ratio": 1.5}, r"mask_ratio must be in \[0, 1\], got 1.5"),
        ({"substitute": "blank"}, "unknown substitute of a masked token 'blank'; choose one of left out, mask, mean"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"scoring": ScoringConfig(saliency=SaliencyConfig(separators=True))}, "leave separators out of the scores"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(DispError, match=message):
        PurifyConfig(**settings)
