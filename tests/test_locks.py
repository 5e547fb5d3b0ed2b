"""One process works in a run folder; the lock goes with the process, and what was half-written goes with the next."""

import os
import signal

import pytest

from disp.errors import DispError
from disp.files import TEMPORARY
from disp.locks import LOCK, alone, locked


@pytest.fixture
def other():
    """A function that lets another process hold a folder, and gives its number."""
    started = []

    def hold(folder):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with locked(folder):
                    os.write(write, b"1")
                    signal.pause()
            finally:
                os._exit(0)
        started.append(child)
        assert os.read(read, 1) == b"1"
        return child

    yield hold
    for child in started:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_second_process_is_refused_in_one_line_that_names_the_first(tmp_path, other):
    child = other(tmp_path / "run")
    with pytest.raises(DispError) as error, locked(tmp_path / "run"):
        pass
    assert str(error.value) == (
        f"{tmp_path / 'run'} is in use by process {child}; wait until it is done, or choose another folder (--out)"
    )


def test_death_lifts_the_lock_and_the_next_deletes_what_was_half_written(tmp_path, other):
    run = tmp_path / "run"
    child = other(run)
    (run / "below").mkdir()
    for file in (
        run / f"{TEMPORARY}a.json",
        run / ".tmpaB3dE6",
        run / "below" / f"{TEMPORARY}b.png",
        run / "kept.json",
    ):
        file.write_text("{")
    os.kill(child, signal.SIGKILL)
    while (run / LOCK).exists():
        try:
            with locked(run):
                assert sorted(path.name for path in run.rglob("*") if path.is_file()) == [LOCK, "kept.json"]
        except DispError:
            continue
    assert sorted(path.name for path in run.rglob("*")) == ["below", "kept.json"]


def test_one_process_may_ask_twice_and_nothing_is_left_behind(tmp_path):
    @alone
    def inner(out):
        return sorted(path.name for path in out.iterdir())

    @alone
    def outer(what, *, out):
        return inner(out), inner(out)

    assert outer(1, out=tmp_path / "run") == ([LOCK], [LOCK])
    assert not (tmp_path / "run").exists()


def test_a_process_that_was_forked_does_not_keep_the_lock_of_one_that_was_killed(tmp_path):
    """An owner that leaves by itself deletes the file; one that is killed leaves it to whoever has it open."""
    read, write = os.pipe()
    owner = os.fork()
    if owner == 0:
        try:
            with locked(tmp_path):
                if os.fork() == 0:
                    os.write(write, str(os.getpid()).encode())
                signal.pause()
        finally:
            os._exit(0)
    child = int(os.read(read, 32))
    try:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        with locked(tmp_path):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_file_in_the_folders_place_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(DispError, match=r"run cannot be written .*choose another folder"), locked(tmp_path / "run"):
        pass


def test_the_other_ranks_of_a_training_need_no_lock(tmp_path, other, monkeypatch):
    other(tmp_path)
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path):
        pass
