"""The plain loop gives what the package gives, and what is measured is what it is called."""

from __future__ import annotations

import json
import sys
from itertools import count

import pytest
import torch

from disp.benchmarks.speed import __main__ as command
from disp.benchmarks.speed import measuring
from disp.benchmarks.speed.model import BenchSizes, bench_model, bench_prefix
from disp.benchmarks.speed.reference import reference_decode, reference_saliency
from disp.decoding.generate import decode
from disp.decoding.samplers import own_settings
from disp.errors import DispError
from disp.suspicion.config import SaliencyConfig
from disp.suspicion.saliency import saliency
from scripts.bench_tables import FILE, PAGE, written

SIZES = BenchSizes(layers=3, width=64, heads=2, hidden=96, vocabulary=200, visual=40, text=6, response=16)


@pytest.fixture(scope="module")
def model():
    return bench_model(SIZES)


@pytest.mark.parametrize("steps", [16, 5])
def test_the_plain_loop_decodes_as_the_package_does(model, steps):
    prefix = bench_prefix(model, SIZES)
    expected = reference_decode(model, prefix, SIZES.response, steps)
    assert not (expected == model.mask_token_id).any()
    for profile in (None, "exact"):
        config = own_settings(model, profile=profile, steps=steps)
        assert torch.equal(decode(model, prefix, config), expected)


def test_its_saliency_is_the_packages(model):
    prefix = bench_prefix(model, SIZES)
    expected = reference_saliency(model, prefix, ["row"], SIZES.response, 3)
    found = saliency(model, prefix, ["row"], SaliencyConfig(probes=3, slots="all"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert (expected[:, : SIZES.visual] > 0).all() and not expected[:, SIZES.visual :].any()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_times_are_medians_of_rounds_side_by_side(monkeypatch):
    busy, called, clock = [0.0], [], count()
    monkeypatch.setattr(measuring.time, "process_time", lambda: busy[0])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: float(next(clock)))

    def task(name, seconds):
        def run():
            called.append(name)
            busy[0] += next(seconds)

        return run

    tasks = {"base": task("base", iter((1.0, 2.0, 8.0))), "other": task("other", iter((3.0, 4.0, 8.0)))}
    found = measuring.side_by_side(tasks, "base", 3)
    assert called == ["base", "other"] * 3
    assert found["other"] == measuring.Times(seconds=1.0, busy=4.0, ratio=2.0)
    assert found["base"].ratio == 1.0 and found["base"].busy == 2.0
    with pytest.raises(DispError, match="nothing to compare with"):
        measuring.side_by_side(tasks, "another", 1)


def test_peak_memory_is_what_is_held_at_once():
    def task():
        first = torch.zeros(1000, 250)  # 1 MB
        second = first + 1
        del first
        return second * 2

    assert 2_000_000 <= measuring.peak_bytes(task) < 2_001_000  # and a few numbers


def test_the_command_measures_every_group(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["speed", "--small", "--out", str(tmp_path)])
    command.main()
    found = json.loads((tmp_path / "speed-cpu.json").read_text())
    rows = found["rows"]
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    groups = ["decoding", "saliency", "training", "visual tokens", "response slots", "rows in a batch"]
    assert list(dict.fromkeys(row["group"] for row in rows)) == groups
    assert all(row["busy"] > 0 and row["ratio"] > 0 and row["peak_bytes"] > 0 for row in rows)
    same = {row["name"]: row["same"] for row in rows if row["group"] == "decoding"}
    assert same["reference loop"] == same["exact"] == 1.0 and 0 <= same["fast"] <= 1
    assert found["hardware"]["torch"] and found["config"]["sizes"]["visual"] == 12
    page = written(PAGE.read_text(encoding="utf-8"), found)
    assert "| K = 2 |" in page and "| 16 visual tokens |" in page
    # Some groups again: the others stay, in their order.
    monkeypatch.setattr(sys, "argv", ["speed", "--small", "--out", str(tmp_path), "--only", "training"])
    command.main()
    again = json.loads((tmp_path / "speed-cpu.json").read_text())["rows"]
    assert [row["name"] for row in again] == [row["name"] for row in rows]
    assert [row for row in again if row["group"] != "training"] == [row for row in rows if row["group"] != "training"]


@pytest.mark.skipif(not FILE.is_file(), reason="make bench has not been run")
def test_the_page_shows_what_was_measured():
    page, found = PAGE.read_text(encoding="utf-8"), json.loads(FILE.read_text(encoding="utf-8"))
    assert page == written(page, found), "run python scripts/bench_tables.py"
