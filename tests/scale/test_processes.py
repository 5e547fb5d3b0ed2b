"""Real processes share the work of the commands: the bytes of one process, whoever is killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from scale.processes import ended, files, rank, started, write_set

from disp.models.saving import save_model


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    """A model and a set."""
    folder = tmp_path_factory.mktemp("run")
    save_model(make_model(gen_length=6), folder / "model")
    write_set(folder / "data", 14)
    return folder


def purify(run, out):
    return ("purify", run / "model", run / "data", "--out", out, "--mode", "all", "--batch-size", "2", "--probes", "2")


def test_a_killed_process_is_started_again_and_nothing_is_lost_or_done_twice(run, tmp_path):
    log = tmp_path / "log"
    assert ended(started(purify(run, tmp_path / "one"), log, {})) == 0, log.read_text()
    out = tmp_path / "two"
    first, second = (started(purify(run, out), log, rank(number, 2)) for number in (0, 1))
    until = time.monotonic() + 120
    while not (parts := list(out.glob("scores.jsonl.parts/*/rank-00001/rows.jsonl"))):
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.001)
    (part,) = parts
    os.kill(second, signal.SIGKILL)
    ended(second)
    finished = part.read_bytes()
    again = started(purify(run, out), log, rank(1, 2))
    assert ended(again) == ended(first) == 0, log.read_text()
    assert files(out) == files(tmp_path / "one"), log.read_text()
    rows = (out / "scores.jsonl").read_bytes()
    assert all(line in rows for line in finished.splitlines(keepends=True) if line.endswith(b"\n"))


def test_processes_agree_on_a_batch_size_that_was_not_given(run, tmp_path):
    log = tmp_path / "log"
    words = list(map(str, purify(run, tmp_path / "one")))
    words[words.index("--batch-size") + 1] = "auto"
    assert ended(started(words, log, {})) == 0, log.read_text()
    assert "batch size 32, by the plan; " in log.read_text()  # the most on a CPU, and there is room
    chosen = tmp_path / "one" / "batch-size.json"
    assert json.loads(chosen.read_text()) == {"batch_size": 32}
    # One that was chosen before is kept, whatever there would be room for now.
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "batch-size.json").write_text('{"batch_size": 2}')
    words[words.index("--out") + 1] = str(tmp_path / "two")
    processes = [started(words, log, rank(number, 2)) for number in (0, 1)]
    assert [ended(process) for process in processes] == [0, 0], log.read_text()
    fixed = purify(run, tmp_path / "three")
    assert ended(started(fixed, log, {})) == 0, log.read_text()
    (tmp_path / "two" / "batch-size.json").unlink()
    assert files(tmp_path / "two") == files(tmp_path / "three")


@pytest.mark.parametrize("verb", ["generate", "evaluate"])
def test_answers_meet_beside_the_file_that_they_end_in(run, tmp_path, verb):
    log, out = tmp_path / "log", {name: tmp_path / name / "out.json" for name in ("one", "two")}
    data = ("--data", run / "data") if verb == "generate" else (run / "data",)
    for name, ranks in (("one", [{}]), ("two", [rank(0, 2), rank(1, 2)])):
        out[name].parent.mkdir()
        command = (verb, run / "model", *data, "--out", out[name], "--batch-size", "4")
        processes = [started(command, log, each) for each in ranks]
        assert [ended(process) for process in processes] == [0] * len(ranks), log.read_text()
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("name", ["spectral", "random-mask"])
def test_a_rival_defence_of_several_processes_has_the_files_of_one(run, tmp_path, name):
    log = tmp_path / "log"
    for folder, ranks in (("one", [{}]), ("two", [rank(0, 2), rank(1, 2)])):
        command = ("baseline", name, run / "model", run / "data", "--out", tmp_path / folder, "--batch-size", "4")
        processes = [started(command, log, each) for each in ranks]
        assert [ended(process) for process in processes] == [0] * len(ranks), log.read_text()
    assert "baseline.json" in files(tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_what_one_process_does_is_refused_to_several(run, tmp_path):
    log = tmp_path / "log"
    command = ("generate", run / "model", "--data", run / "data", "--out", tmp_path / "out.jsonl", "--guard")
    assert ended(started(command, log, rank(0, 2))) == 2
    assert log.read_text() == "disp: --guard is for one process, and there are 2; start it without a launcher\n"
    assert ended(started(("evaluate", run / "model", run / "data"), log, rank(1, 2))) == 2
    assert "several workers need --out" in log.read_text()


@pytest.mark.slow
def test_an_audit_under_torchrun_has_the_files_of_one_process(run, tmp_path, environment):
    for name, launcher in (("one", ["-m"]), ("two", ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m"])):
        command = [sys.executable, *launcher, "disp", "audit", run / "model", run / "data", "--out", tmp_path / name]
        done = subprocess.run(
            [*map(str, command), "--fail-on", "never"], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one.keys() == two.keys()
    times = {"audit.json", "report.html", "summary.md"}
    assert {name: one[name] for name in one.keys() - times} == {name: two[name] for name in two.keys() - times}
    said = [
        {key: value for key, value in json.loads(each["audit.json"]).items() if key != "cost"} for each in (one, two)
    ]
    assert said[0] == said[1]
