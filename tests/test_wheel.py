"""What is in the package that is installed, and what is only in the repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# How the built-in model was made and measured, which docs/results.md tells of.
LEFT_OUT = {f"disp/models/builtin/{name}" for name in ("pretrain.log", "pretrain-cpu.log", "quality.json")}


def tracked() -> set[str]:
    """The files of the package that git knows, as they are called in the wheel."""
    done = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a clone")
    return {name.removeprefix("src/") for name in done.stdout.splitlines()}


def test_the_wheel_has_what_runs_and_no_more():
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    known = tracked()
    there = {file.distribution_path for file in wheel.WheelBuilder(str(ROOT)).recurse_included_files()}
    assert LEFT_OUT <= known
    assert there & known == known - LEFT_OUT
    assert there.isdisjoint(LEFT_OUT)
