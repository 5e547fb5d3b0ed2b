"""No space, no permission, lost pictures, two at once, and being told to stop: one line, and the work goes on after."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from abuse.campaign import Ended, contents, draws, forked, planted_instead, tried
from abuse.test_kills import CASES, command, not_compared, without_times
from planted import honest_rows, planted_rows, write_rows

SHORT = ("poison", "purify")
LONG = [pytest.param(name, marks=pytest.mark.abuse) for name in ("train", "audit", "defend", "convert to json")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk") / "data"
    write_rows(folder, [*honest_rows(24), *planted_rows()])
    return folder


def good(campaign: str, ended: Ended, *said: str) -> None:
    """Count a try; it must have ended well or in one line, which holds one of some words."""
    fine = ended.in_one_line and (ended.code in (0, 1) or not said or any(each in ended.error for each in said))
    tried(campaign, failed=not fine)
    assert fine, ended.said


def same_as_undisturbed(name: str, data: Path, out: Path, folder: Path) -> None:
    whole = folder / "whole"
    if not whole.exists():
        ended = forked(command(CASES[name], data, whole), folder / "log")
        assert ended.code in (0, 1), ended.said
    found, expected = (without_times(contents(each, not_compared), each) for each in (out, whole))
    assert sorted(found) == sorted(expected)
    assert [key for key in expected if found[key] != expected[key]] == []


def with_limit(size: int):
    """Files may not grow beyond so many bytes, as on a disk that is full."""

    def begin() -> None:
        planted_instead()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return begin


def starve(name: str, data: Path, folder: Path, tries: int) -> None:
    """Files that may not grow; then the same command without the limit."""
    draw = draws(7)
    for number in range(tries):
        out = folder / f"{number}"
        size = int(10 ** draw.uniform(2, 5.3))
        ended = forked(command(CASES[name], data, out), folder / "log", before=with_limit(size))
        good(f"no space: {name}", ended, "cannot be written", "File too large", "No space")
        again = forked(command(CASES[name], data, out), folder / "log")
        done = CASES[name].refused and ended.code == 0 and CASES[name].refused in again.said
        assert (again.code in (0, 1) and again.in_one_line) or done, again.said
        same_as_undisturbed(name, data, out, folder)


@pytest.mark.abuse
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", CASES)
def test_files_that_may_not_grow(name, data, tmp_path):
    starve(name, data, tmp_path, 3 if name == "defend" else 5)


@pytest.mark.parametrize("name", [*SHORT, "merge"])
def test_files_that_may_not_grow_a_few(name, data, tmp_path):
    starve(name, data, tmp_path, 2)


@contextmanager
def small_disk(folder: Path, options: str):
    """A file system in memory; skips where it cannot be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk is mounted by root alone")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", SHORT)
def test_a_disk_that_is_full(name, data, tmp_path):
    with small_disk(tmp_path / "disk", "size=16k"):
        ended = forked(command(CASES[name], data, tmp_path / "disk" / "out"), tmp_path / "log")
        good("a full disk", ended, "cannot be written (No space left on device); free some space")
        assert ended.code == 2


@pytest.mark.abuse
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", CASES)
def test_a_disk_that_is_full_at_some_time(name, data, tmp_path):
    """A disk of another size each time; then it gets larger, and the same command goes on."""
    draw = draws(8)
    for number in range(2 if name == "defend" else 3):
        disk = tmp_path / f"disk{number}"
        size = int(2 ** draw.uniform(2, 9))
        with small_disk(disk, f"size={size}k"):
            ended = forked(command(CASES[name], data, disk / "out"), tmp_path / "log")
            good(f"a full disk: {name}", ended, "cannot be written (No space left on device)", "No space left")
            larger = ["mount", "-o", "remount,size=400m", str(disk)]
            subprocess.run(larger, check=True)
            again = forked(command(CASES[name], data, disk / "out"), tmp_path / "log")
            done = CASES[name].refused and ended.code == 0 and CASES[name].refused in again.said
            assert (again.code in (0, 1) and again.in_one_line) or done, again.said
            same_as_undisturbed(name, data, disk / "out", tmp_path)


@pytest.mark.parametrize("name", ["poison", "purify", "merge", "convert", *LONG])
def test_a_disk_that_is_only_read(name, data, tmp_path):
    with small_disk(tmp_path / "disk", "ro"):
        ended = forked(command(CASES[name], data, tmp_path / "disk" / "out"), tmp_path / "log")
        good(
            "a read-only disk",
            ended,
            "cannot be written (Read-only file system); choose another folder",
            "may not be written to",
        )
        assert ended.code == 2


def lose_pictures(name: str, data: Path, folder: Path, seed: int) -> None:
    given, away, out = folder / "given", folder / "away", folder / "out"
    shutil.copytree(data, given)
    draw = draws(seed)
    whole = forked(command(CASES[name], data, folder / "whole"), folder / "log")
    first = forked(command(CASES[name], given, out), folder / "log", after=draw.uniform(0, whole.seconds))
    assert first.killed or first.in_one_line
    (given / "images").rename(away)
    lost = forked(command(CASES[name], given, out), folder / "log")
    good(
        "pictures lost midway",
        lost,
        "no such image",
        "does not exist",
        "no usable row",
        "cannot be read",
        "has a picture",
        "has an image",
        *filter(None, [CASES[name].refused]),
    )
    away.rename(given / "images")
    after = forked(command(CASES[name], given, out), folder / "log")
    done = CASES[name].refused and CASES[name].refused in after.said
    assert after.in_one_line and (after.code in (0, 1) or done), after.said


@pytest.mark.abuse
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["audit", "purify", "train", "defend", "poison", "convert"])
@pytest.mark.parametrize("seed", range(3))
def test_pictures_lost_midway(name, seed, data, tmp_path):
    lose_pictures(name, data, tmp_path, seed)


def test_pictures_lost_once(data, tmp_path):
    lose_pictures("purify", data, tmp_path, 0)


def signalled(name: str, data: Path, folder: Path, number: int, tries: int) -> None:
    """Stopped by a signal a process can answer to: one line, its exit code, and it goes on after."""
    said = {signal.SIGTERM: (143, "stopped"), signal.SIGINT: (130, "interrupted")}
    code, word = said[signal.Signals(number)]
    whole = forked(command(CASES[name], data, folder / "whole"), folder / "log")
    draw = draws(number)
    for each in range(tries):
        out = folder / f"{each}"
        after = draw.uniform(0.2, 0.8) * whole.seconds
        ended = forked(command(CASES[name], data, out), folder / "log", after=after, number=number)
        fine = ended.in_one_line and (ended.code in (0, 1) or (ended.code == code and word in ended.error))
        tried(signal.Signals(number).name, failed=not fine)
        assert fine, (ended.code, ended.said)
        again = forked(command(CASES[name], data, out), folder / "log")
        assert again.in_one_line
        same_as_undisturbed(name, data, out, folder)


@pytest.mark.abuse
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["train", "audit", "purify", "poison", "merge", "defend", "convert"])
def test_told_to_stop(name, number, data, tmp_path):
    signalled(name, data, tmp_path, number, 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_once(number, data, tmp_path):
    signalled("purify", data, tmp_path, number, 1)


@pytest.mark.parametrize("name", ["purify", "poison", pytest.param("convert", marks=pytest.mark.abuse), *LONG])
def test_two_processes_on_one_folder(name, data, tmp_path):
    """One of the two is refused in a line that says why, or comes after the other and finds its work done."""
    out = tmp_path / "out"
    logs = [tmp_path / "one", tmp_path / "two"]
    children = []
    for log in logs:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if forked(command(CASES[name], data, out), log).in_one_line else 1
            finally:
                os._exit(code)
        children.append(child)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    told = "".join(log.read_text() for log in logs)
    fine = ends == [0, 0] and ("in use by" in told or "disp: " not in told or CASES[name].refused in told)
    tried("two processes on one folder", failed=not fine)
    assert fine, told
    same_as_undisturbed(name, data, out, tmp_path)
