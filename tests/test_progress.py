"""Progress where there is no terminal: plain lines on stderr, not too many."""

import io
import re
from functools import partial

import pytest
from rich.console import Console

from disp import progress
from disp.progress import clock, no_progress, progress_bar


@pytest.fixture
def now(monkeypatch):
    """A clock that the test sets: ``now[0]`` in seconds."""
    time = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_a_line_now_and_then_and_one_at_the_end(now, capsys):
    with progress_bar("drawing", 40) as advance:
        for _ in range(40):
            now[0] += 3
            advance(1)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[0] == "drawing 4/40, 1:48 left"
    assert lines[-1] == "drawing 40/40, took 2:00"
    assert len(lines) == 10  # one every 12 seconds, the last of which is the end


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_a_bar_fits_into_its_terminal(width, monkeypatch):
    written = io.StringIO()
    terminal = partial(Console, file=written, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr("rich.console.Console", lambda stderr: terminal())
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar("looking for more that say a sentence without end", 123456) as advance:
        advance(61728)
    line = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", written.getvalue().replace("\r", "\n")).rstrip().splitlines()[-1]
    assert len(line) <= width and line.startswith("looking")
    assert " 61728/123456 " in line and re.search(r" left +(-|\d):", line)


def test_a_quick_step_says_one_line(now, capsys):
    with progress_bar("reading", 3) as advance:
        advance(2)
        advance(1)
    assert capsys.readouterr().err == "reading 3/3, took 0:00\n"


def test_the_silent_bar_is_silent(capsys):
    with no_progress("anything", 3) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599.4, "59:59"), (3661, "1:01:01")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
