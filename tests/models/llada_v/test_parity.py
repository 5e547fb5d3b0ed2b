"""LLaDA-V against its recorded outputs."""

from __future__ import annotations

import math

import parity
import pytest
from models.difference import Difference
from parity_folder import PARITY as ROOT

PARITY = ROOT / "llada_v"


@pytest.mark.skipif(not PARITY.is_dir(), reason=f"no recorded outputs in {PARITY}")
def test_recorded_outputs(capsys):
    assert parity.main([str(PARITY)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # With what the authors of DiSP computed on this model, where that was recorded too.
    count = 48 if (PARITY / "disp.safetensors").is_file() else 29
    assert len(lines) == count + 1 and all(line.startswith("ok") for line in lines[:-1])
    assert lines[-1] == f"llada_v: llada_v, {count} quantities, all within tolerance"


def test_the_command_fails_on_a_difference_and_on_an_unknown_folder(checkpoint, tmp_path, capsys, monkeypatch):
    assert parity.main([str(checkpoint)]) == 2  # nothing recorded
    assert "no meta.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert parity.main([str(tmp_path)]) == 2
    assert "unknown model type" in capsys.readouterr().err
    assert parity.main([]) == 2
    for value, status in ((0.5, 0), (1.5, 1), (math.nan, 1)):
        module = type(
            "module", (), {"__name__": "models.x.recorded", "compare": lambda _, v=value: [Difference("q", v, 1)]}
        )
        monkeypatch.setattr(parity, "comparison", lambda folder, module=module: module)
        assert parity.main(["somewhere"]) == status
