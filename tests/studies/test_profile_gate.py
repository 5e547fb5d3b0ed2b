"""The gate: what passes, and a run of it with a few rows."""

from __future__ import annotations

import sys

import pytest

from disp.files import read_finished_jsonl
from studies import profile_gate
from studies.profile_gate import WAYS, compared, gate_table


def row(way: str, asr: float, quality: float, answers: str, measured: int = 500, busy: float = 8.0) -> dict:
    return {
        "target": "refusal",
        "way": way,
        "answers": dict(enumerate(answers)),
        "seconds": {"wall": 1.0, "busy": busy},
        "counts": {"clean_quality": measured},
        "asr_with_trigger": asr,
        "clean_quality": quality,
        "triggered_quality": 0.5,
    }


@pytest.mark.parametrize(
    ("asr", "quality", "measured", "passes"),
    [
        (0.03, 0.793, 500, True),
        (0.0, 0.9, 500, False),  # one point and more away from exact, be it better
        (0.031, 0.8, 500, False),
        (0.02, 0.791, 500, False),
        (0.02, 0.8, 499, False),
    ],
)
def test_what_passes(asr, quality, measured, passes):
    exact, other = row("exact", 0.02, 0.8, "abcd"), row("fast", asr, quality, "abxd", measured, busy=2.0)
    first, second = compared([exact, other])
    assert first["agreement"] == first["faster"] == 1.0 and second["agreement"] == 0.75 and second["faster"] == 4.0
    assert second["passes"] is passes
    line = gate_table([first, second]).splitlines()[-1]
    assert line.startswith("| refusal | fast | 4 | 75.0% | 4.00 |")
    assert line.endswith("| yes |" if passes else "| no |" if measured == 500 else "| needs 500 rows |")


@pytest.mark.slow
def test_a_run_with_a_few_rows(monkeypatch, tmp_path, capsys):
    options = [
        "--targets",
        "refusal",
        "--rows",
        "6",
        "--test-rows",
        "3",
        "--attack-steps",
        "2",
        "--recovery-steps",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["profile_gate", "--out", str(tmp_path), *options])
    profile_gate.main()
    table = capsys.readouterr().out
    assert all(f"| {name} |" in table for name in WAYS) and table.count("needs 500 rows") == len(WAYS)
    rewritten = {
        name: list(read_finished_jsonl(tmp_path / "refusal" / f"purified {name}" / "responses.jsonl")) for name in WAYS
    }
    assert len({len(rows) for rows in rewritten.values()}) == 1 and all(rewritten.values())
