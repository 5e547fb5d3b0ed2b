"""A defence by several processes: what one process leaves behind, trained by the first of them."""

import json
import os
import signal
import time
from functools import partial

import pytest
from planted import audit_config, load_planted
from scale.processes import ended, files, forked, rank, started

from disp.cli import app
from disp.defence import defend as module
from disp.defence.defend import DefenceConfig, defend
from disp.errors import DispError
from disp.processes import place
from disp.scale.shared import Ranks
from disp.training.config import TrainConfig

CONFIG = DefenceConfig(
    audit=audit_config(),
    training=TrainConfig(steps=8, batch_size=16, learning_rate=8.0, warmup_steps=1, min_mask_ratio=0.5, save_every=2),
    probes=10,
)
# Of torchrun, with a port that nobody listens at: training must not look for the others.
LAUNCHER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9", "LOCAL_WORLD_SIZE": "2"}


def defended(dataset, out):
    defend("planted", dataset, CONFIG, out, load=load_planted, workers=Ranks("data", place()))


def told(folder):
    """What was left behind, without how long it took, and wherever it lies."""
    found = {name: content for name, content in files(folder).items() if "checkpoints" not in name}
    found = {name: content.replace(str(folder).encode(), b"FOLDER") for name, content in found.items()}
    for name in [name for name in found if name.endswith(("audit.json", "verify.json", "train.json"))]:
        value = json.loads(found[name])
        value.pop("cost", None)
        for row in value.get("log_history", ()):
            for key in [key for key in row if "runtime" in key or "per_second" in key]:
                del row[key]
        found[name] = value
    return found


def test_two_processes_leave_what_one_does_although_one_is_killed_in_training(dataset, tmp_path):
    log = tmp_path / "log"
    defend("planted", dataset, CONFIG, tmp_path / "one", load=load_planted)
    out = tmp_path / "two"
    work = partial(defended, dataset, out)
    first, second = (forked(work, log, {**rank(number, 2), **LAUNCHER}) for number in (0, 1))
    until = time.monotonic() + 240
    while not list(out.glob("model/checkpoints/checkpoint-*")):
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.001)
    for process in (first, second):
        os.kill(process, signal.SIGKILL)
        ended(process)
    processes = [forked(work, log, {**rank(number, 2), **LAUNCHER}) for number in (0, 1)]
    assert [ended(process) for process in processes] == [0, 0], log.read_text()
    assert told(out) == told(tmp_path / "one")


def test_a_step_of_a_recipe_has_all_its_rows_in_the_one_process_that_trains(dataset, tmp_path, monkeypatch):
    asked = []

    def stopped(*given, **named):
        asked.append(given[2].training)
        raise DispError("enough")

    monkeypatch.setattr(module, "defend", stopped)
    for launcher in ({}, {**rank(0, 2), **LAUNCHER}):
        for name, value in launcher.items():
            monkeypatch.setenv(name, value)
        words = ["defend", "builtin", str(dataset.path), "--out", str(tmp_path / "out"), "--recipe", "disp"]
        with pytest.raises(DispError, match="enough"):
            app([*words, "--train-batch-size", "4"], print_error=False, exit_on_error=False)
    assert asked[0].trainer["gradient_accumulation_steps"] == 8  # 32 rows a step
    assert asked[1] == asked[0]


def test_actors_of_ray_are_refused(dataset, tmp_path):
    command = ("defend", "builtin", dataset.path, "--out", tmp_path / "out", "--engine", "ray")
    assert ended(started(command, tmp_path / "log", {})) == 2
    assert "run disp audit, purify and train one after the other" in (tmp_path / "log").read_text()
