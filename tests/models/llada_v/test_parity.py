"""LLaDA-V against its recorded outputs."""

from __future__ import annotations

import json
import math

import parity
import pytest
from models.difference import Difference
from models.llada_v.recorded import disp_settings
from parity_folder import PARITY as ROOT
from safetensors.torch import load_file, save_file

PARITY = ROOT / "llada_v"


@pytest.mark.skipif(not PARITY.is_dir(), reason=f"no recorded outputs in {PARITY}")
def test_recorded_outputs(capsys):
    assert parity.main([str(PARITY)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # With what the authors of DiSP computed on this model, where that was recorded too.
    count = 48 if (PARITY / "disp.safetensors").is_file() else 29
    assert len(lines) == count + 1 and all(line.startswith("ok") for line in lines[:-1])
    assert lines[-1] == f"llada_v: llada_v, {count} quantities, all within tolerance"


@pytest.mark.parametrize(
    ("name", "meta", "expected"),
    [
        ("published", {}, (0.3, 8)),
        ("ratio_60", {}, (0.6, 8)),
        ("two_blocks_ratio_05", {"generate": {"two_blocks": {"steps": 4}}}, (0.05, 8)),
        ("steps_2_ratio_60", {}, (0.6, 2)),
        ("few_steps", {"generate": {"few_steps": {"steps": 3}}}, (0.3, 3)),
        ("gentle", {"disp": {"gentle": {"mask_ratio": 0.1, "steps": 5}}}, (0.1, 5)),
        ("ratio_60", {"disp": {"ratio_60": {"steps": 5}}}, (0.6, 5)),
    ],
)
def test_a_recording_of_disp_says_its_settings(name, meta, expected):
    assert disp_settings(name, meta, 8) == expected


@pytest.mark.skipif(not (PARITY / "disp.safetensors").is_file(), reason=f"nothing of DiSP is recorded in {PARITY}")
def test_recordings_of_disp_may_have_any_names(tmp_path, capsys):
    for file in PARITY.iterdir():
        if file.name not in ("disp.safetensors", "meta.json"):
            (tmp_path / file.name).symlink_to(file)
    recorded, meta = load_file(PARITY / "disp.safetensors"), json.loads((PARITY / "meta.json").read_text())

    def known_as(**names):
        """Whether all agrees where recordings have these names, by those that they have."""
        parts = ("probes", "scores", "order", "generated")
        renamed = {f"{new}.{part}": recorded[f"{old}.{part}"] for old, new in names.items() for part in parts}
        save_file(renamed, tmp_path / "disp.safetensors")
        (tmp_path / "meta.json").write_text(json.dumps(meta))
        return parity.main([str(tmp_path)]) == 0

    assert known_as(ratio_45="two_images_ratio_45", few_steps="steps_3")
    assert not known_as(ratio_45="other")  # 0.3 of the tokens gives another answer
    assert "other.generated" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL"))
    meta["disp"] = {"other": {"mask_ratio": 0.45}, "fewer": {"steps": 3}}
    assert known_as(ratio_45="other", few_steps="fewer")


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
