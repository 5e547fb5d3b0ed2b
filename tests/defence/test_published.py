"""A defence as DiSP's authors do it: every row is rewritten, whatever the audit finds."""

import pytest
from planted import audit_config, honest_rows, load_planted, write_rows

from disp.defence.defend import DefenceConfig, defend
from disp.errors import DispError
from disp.training.config import TrainConfig


def test_every_row_with_a_picture_is_rewritten_though_nothing_was_found(tmp_path, monkeypatch):
    # This model has sixteen slots, neither more nor less.
    monkeypatch.setattr("disp.purification.config.PUBLISHED_SLOTS", 16)
    rows = honest_rows(20)
    dataset = write_rows(tmp_path / "data", rows)
    training = TrainConfig(steps=1, batch_size=4, learning_rate=1e-3)
    config = DefenceConfig(audit=audit_config(false_alarm_rate=0.2), training=training, preset="published", probes=2)
    found = defend("planted", dataset, config, tmp_path / "out", load=load_planted)
    assert found.before.verdict == "no evidence" and found.after is not None
    purified = (tmp_path / "out" / "purified" / "purify.json").read_text()
    assert '"rewritten": 22' in purified  # all but the row without a picture
    assert found.model is not None and found.residual == ()


def test_there_is_no_other_preset():
    with pytest.raises(DispError, match="unknown preset 'paper'"):
        DefenceConfig(preset="paper")
