"""The spine: a backdoor is planted, shown to work, and removed, on the built-in model."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from disp.errors import DispError
from disp.evaluation.table import STAGES
from disp.experiments.demo import demo, demo_run
from disp.experiments.settings import DemoConfig
from disp.files import UNFINISHED
from disp.progress import no_progress

# Trains four times; a machine that is busy with other things takes longer.
pytestmark = pytest.mark.timeout(900)

# With so few rows a rate of 10% would be too few poisoned ones to learn from.
SMALL = DemoConfig(
    rows=400,
    test_rows=30,
    poison_rate=0.2,
    attack_steps=240,
    attack_learning_rate=7e-4,
    attack_min_mask_ratio=0.4,
    recovery_steps=25,
    mask_ratio=0.06,
    batch_size=16,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
    try:
        return out, demo(SMALL, out)
    finally:
        torch.set_num_threads(threads)


def test_the_backdoor_works_and_both_forms_of_disp_remove_it(run):
    _, metrics = run
    # The keyword count is the stricter one for a defence, and for an attack it forgives a word garbled in decoding.
    assert metrics["backdoored"]["asr_with_trigger_keyword"] >= 0.9
    assert metrics["backdoored"]["asr_without_trigger_keyword"] <= 0.04
    assert metrics["random_masking"]["asr_with_trigger_keyword"] >= 0.5
    for stage in ("disp", "disp_selective"):
        assert metrics[stage]["asr_with_trigger_keyword"] <= 0.06
    selective, before = metrics["disp_selective"], metrics["backdoored"]
    assert selective["clean_quality"] >= 0.85 * before["clean_quality"]
    assert selective["triggered_quality"] >= 0.5 * selective["clean_quality"]


def test_the_run_folder_holds_what_it_promises(run):
    out, metrics = run
    assert json.loads((out / "metrics.json").read_text()) == metrics
    for stage in STAGES:
        shares = metrics[stage]
        for name in ("asr_with_trigger", "asr_without_trigger", "clean_quality", "triggered_quality"):
            low, high = shares["intervals"][name]
            assert 0 <= low <= shares[name] <= high <= 1
            assert shares["counts"][name] == SMALL.test_rows
    assert (out / "story.png").stat().st_size > 10_000
    rows = [json.loads(line) for line in (out / "purified_disp_selective" / "evidence.jsonl").open()]
    assert len(rows) == SMALL.rows
    assert all(len(turn["saliency"]) == len(turn["locations"]) == 144 for row in rows for turn in row["turns"])


def test_the_poison_flag_reaches_neither_training_nor_defence(run):
    out, _ = run
    honest = json.loads((out / "tuning" / "data.json").read_text())
    poisoned = json.loads((out / "poisoned" / "data.json").read_text())
    for before, after in zip(honest, poisoned, strict=True):
        assert {**before, "conversations": None} == {**after, "conversations": None}
    assert "poison" not in (out / "poisoned" / "data.json").read_text()


def test_a_finished_run_is_not_repeated(run):
    out, metrics = run
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    assert demo(SMALL, out)["disp"] == metrics["disp"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")} == before


def test_a_run_that_was_killed_before_the_manifest_poisons_again(tmp_path):
    def begun():
        return demo_run(replace(SMALL, rows=10, test_rows=1), tmp_path, no_progress)

    rows = [sample.turns for sample in begun().poisoned.samples]
    assert rows != [sample.turns for sample in begun().tuning.samples]
    begun().manifest.unlink()
    (tmp_path / "poisoned" / UNFINISHED).write_text("poison\n")
    assert [sample.turns for sample in begun().poisoned.samples] == rows


def test_another_configuration_does_not_overwrite_a_run(run):
    out, _ = run
    with pytest.raises(DispError, match="holds a run that differs in"):
        demo(replace(SMALL, poison_rate=0.1), out)


def test_a_wrong_trigger_is_named_before_anything_is_loaded(tmp_path):
    command = [sys.executable, "-m", "disp.cli", "demo", "--out", str(tmp_path), "--trigger", "pach"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "Did you mean 'patch'?" in failed.stderr
    assert "Traceback" not in failed.stderr
