"""Actors of Ray do the work of the commands: the bytes of one process, and no batch lost when one dies."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from scale.conftest import Item
from scale.processes import ended, files, started, write_set

from disp.errors import DispError
from disp.files import read_lines
from disp.models.saving import save_model
from disp.scale.ray_pool import RayPool
from disp.scale.stage import Stage, planned
from disp.scale.workers import Alone

pytest.importorskip("ray", reason="Ray is an extra: pip install '.[ray]'")


@pytest.fixture(scope="module")
def pool():
    """A function that gives some of four actors without a model, which all tests share: each loads PyTorch."""
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    os.environ["RAY_worker_niceness"] = "0"  # 15 of itself: on a busy machine its processes then hardly run
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    four = RayPool("data", nothing, 4)
    four.start()
    yield lambda actors: RayPool("data", nothing, actors, handles=four.handles[:actors])
    ray.shutdown()


def nothing():
    return None


def logged(model, batch, *, log, kill=""):
    """A step that writes down who does what, and dies once where it is told to."""
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {batch[0].key}\n")
    killed = Path(f"{log}.killed")
    if batch[0].key == kill and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return [{"key": item.key, "said": item.key.upper(), "of": len(batch)} for item in batch]


def stage_in(folder, count=20, **options):
    folder.mkdir(exist_ok=True)
    items = [Item(f"i{number}") for number in range(count)]
    return Stage(items, partial(logged, log=folder / "log", **options), planned(items, 2), folder / "rows.jsonl")


def shared(stage, worker):
    kept = []
    worker.share(None, stage, kept.append, lambda count: None)
    return kept


@pytest.mark.parametrize("actors", [1, 2, 4])
def test_any_number_of_actors_leaves_the_bytes_of_one_process(pool, tmp_path, actors):
    expected = shared(stage_in(tmp_path / "alone"), Alone())
    stage = stage_in(tmp_path / "ray")
    assert shared(stage, pool(actors)) == expected
    assert stage.file.read_bytes() == (tmp_path / "alone" / "rows.jsonl").read_bytes()
    assert sorted(path.name for path in (tmp_path / "ray").iterdir()) == ["log", "rows.jsonl"]


def test_an_actor_that_is_killed_loses_and_repeats_nothing_but_its_own_batches(pool, tmp_path):
    expected = shared(stage_in(tmp_path / "alone"), Alone())
    stage = stage_in(tmp_path / "ray", kill="i8")
    assert shared(stage, pool(2)) == expected
    done = [line.split()[1] for line in (tmp_path / "ray" / "log").read_text().splitlines()]
    repeated = sorted({key for key in done if done.count(key) > 1})
    assert repeated == ["i8"]
    assert len(done) == 11


def test_a_driver_that_is_started_again_does_what_is_left(pool, tmp_path):
    expected = shared(stage_in(tmp_path / "alone"), Alone())
    stage, seen = stage_in(tmp_path / "ray"), []

    def stop(count):
        seen.append(count)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool(2).share(None, stage, lambda row: None, stop)
    (part,) = stage.parts.glob("*/rows.jsonl")
    finished = {row["key"] for _, _, row in read_lines(part)}
    time.sleep(0.5)  # what was under way when the driver stopped
    (tmp_path / "ray" / "log").unlink()
    assert shared(stage_in(tmp_path / "ray"), pool(2)) == expected
    again = {line.split()[1] for line in (tmp_path / "ray" / "log").read_text().splitlines()}
    assert len(finished) == 8
    assert not again & finished


@pytest.mark.slow
def test_a_driver_that_is_killed_with_its_head_goes_on_where_it_was(make_model, tmp_path, environment):
    psutil = pytest.importorskip("psutil")
    save_model(make_model(gen_length=6), tmp_path / "model")
    data, log = write_set(tmp_path / "data", 12), tmp_path / "log"
    command = ("purify", tmp_path / "model", data, "--mode", "all", "--batch-size", "2", "--probes", "2", "--out")
    assert ended(started((*command, tmp_path / "one"), log, {})) == 0, log.read_text()
    out = tmp_path / "ray"
    words = [sys.executable, "-m", "disp", *map(str, command), str(out), "--engine", "ray", "--actors", "2"]
    with log.open("ab") as file:
        driver = psutil.Popen(words, env=environment, stdout=file, stderr=file)
    until = time.monotonic() + 300
    while not (parts := [*out.glob("scores.jsonl.parts/*/driver/rows.jsonl")]) or not parts[0].stat().st_size:
        assert time.monotonic() < until and driver.poll() is None, log.read_text()
        time.sleep(0.001)
    for process in (driver, *driver.children(recursive=True)):  # Ray's head and the actors too
        with suppress(psutil.NoSuchProcess):
            process.kill()
    driver.wait()
    finished = [line for line in parts[0].read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert 0 < len(finished)
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files(out) == files(tmp_path / "one")
    rows = (out / "scores.jsonl").read_bytes()
    assert all(line in rows for line in finished)


def failing(model, batch):
    raise DispError("the numbers overflow")


def test_an_error_of_a_step_is_the_driver_s(pool, tmp_path):
    stage = stage_in(tmp_path)
    with pytest.raises(DispError, match=r"^the numbers overflow$"):
        shared(Stage(stage.items, failing, stage.batches, stage.file), pool(1))


def test_a_purification_by_actors_has_the_files_of_one_process(pool, make_model, tmp_path):
    from disp.cli import app

    save_model(make_model(gen_length=6), tmp_path / "model")
    data, log = write_set(tmp_path / "data", 8), tmp_path / "log"
    command = ("purify", tmp_path / "model", data, "--mode", "all", "--batch-size", "2", "--probes", "2", "--out")
    assert ended(started((*command, tmp_path / "one"), log, {})) == 0, log.read_text()
    words = [str(word) for word in (*command, tmp_path / "two", "--engine", "ray", "--actors", "2")]
    app(words, print_error=False, exit_on_error=False, result_action="return_value")
    assert files(tmp_path / "two") == files(tmp_path / "one")
