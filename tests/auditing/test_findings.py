"""The order in which an audit holds samples for poisoned."""

from __future__ import annotations

from disp.auditing.findings import Audit
from disp.evaluation.intervals import wilson


def ranks(scores: dict[str, float], flagged: tuple[str, ...]) -> dict[str, int]:
    return Audit("suspicious", (), 1.0, scores, flagged, wilson(len(flagged), len(scores)), (), None, {}).ranks


def test_flagged_samples_come_first_and_suspicion_orders_the_rest():
    found = ranks({"honest": 9.0, "pair": 0.0, "planted": 3.0, "quiet": 0.5}, ("planted", "pair"))
    assert found == {"planted": 1, "pair": 2, "honest": 3, "quiet": 4}


def test_equals_share_the_best_place_that_is_theirs():
    assert ranks({"a": 0.0, "b": 2.0, "c": 0.0, "d": -1.0}, ()) == {"b": 1, "a": 2, "c": 2, "d": 4}
