"""Killed at random moments and started again, a command ends with the files of a run that was never stopped."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from abuse.campaign import Ended, contents, draws, forked, tried
from planted import honest_rows, planted_rows, write_rows

SCORING = ("--candidates", 3, "--probes", 2, "--batch-size", 8)
LEARNING = ("--learning-rate", 8, "--min-mask-ratio", 0.5)


@dataclass(frozen=True)
class Case:
    """A command that is killed.

    Attributes:
        arguments: its command line; DATA and OUT stand for the folders.
        kills: how often in the long campaign.
        refused: what it says where it had finished before it was killed; "" where it just ends well again.
    """

    arguments: tuple[object, ...]
    kills: int
    refused: str = ""


CASES = {
    "poison": Case(("poison", "DATA", "--out", "OUT", "--rate", 0.2), 10, "holds a poisoned dataset already"),
    "train": Case(
        ("train", "planted", "DATA", "--out", "OUT", "--steps", 8, *LEARNING, "--batch-size", 16, "--save-every", 2), 10
    ),
    "audit": Case(("audit", "planted", "DATA", "--out", "OUT", *SCORING), 10),
    "purify": Case(("purify", "planted", "DATA", "--out", "OUT", *SCORING), 10),
    "defend": Case(
        ("defend", "planted", "DATA", "--out", "OUT", *SCORING, "--steps", 8, *LEARNING, "--train-batch-size", 16), 14
    ),
    "merge": Case(("merge", "builtin", "--out", "OUT"), 10, "is not empty"),
    "convert": Case(("convert", "DATA", "--out", "OUT", "--to", "webdataset"), 10, "exists; choose another folder"),
    "convert to json": Case(("convert", "DATA", "--out", "OUT", "--to", "llava"), 10, "exists; choose another folder"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills") / "data"
    write_rows(folder, [*honest_rows(24), *planted_rows()])
    return folder


def command(case: Case, data: Path, out: Path) -> list[object]:
    return [{"DATA": data, "OUT": out}.get(str(each), each) for each in case.arguments]


def not_compared(name: str) -> bool:
    """Files with times in them, and what a finished run has no more use for."""
    return bool(re.search(r"report\.html$|summary\.md$|training_args\.bin$|checkpoints/", name))


def without_times(found: dict[str, bytes], out: Path) -> dict[str, object]:
    """The files with times, and the folder's own name, taken out."""
    told: dict[str, object] = {}
    for name, content in found.items():
        content = content.replace(str(out).encode(), b"OUT")
        told[name] = content
        if name.endswith(("audit.json", "verify.json", "train.json")):
            with suppress(ValueError, AttributeError, KeyError, TypeError):  # one that was damaged stays bytes
                told[name] = timeless(json.loads(content))
    return told


def timeless(value: dict[str, object]) -> object:
    """What ``audit.json`` or ``train.json`` holds, without seconds."""
    if "log_history" not in value:
        return {key: each for key, each in value.items() if key != "cost"}
    rows: Any = value["log_history"]
    return [{key: row.get(key) for key in ("step", "loss", "learning_rate")} for row in rows]


def killed_until_done(case: Case, data: Path, out: Path, kills: int, seed: int, whole: float) -> tuple[int, Ended]:
    """Kill the command so often, or until it is done, then let it end."""
    draw = draws(seed)
    log = out.parent / "log"
    for count in range(kills):
        ended = forked(command(case, data, out), log, after=draw.uniform(0.0, whole))
        if not ended.killed:
            assert ended.in_one_line, ended.said
            return count, ended
    return kills, forked(command(case, data, out), log)


def check(name: str, data: Path, folder: Path, kills: int, seed: int = 0) -> None:
    case = CASES[name]
    first = folder / "first"
    whole = forked(command(case, data, first), folder / "log")
    assert whole.code in (0, 1) and whole.in_one_line, whole.said
    expected = without_times(contents(first, not_compared), first)
    done = attempt = 0
    while done < kills:
        out = folder / "killed"
        count, ended = killed_until_done(case, data, out, min(kills - done, 5), seed + attempt, whole.seconds)
        done, attempt = done + count, attempt + 1
        tried(f"SIGKILL: {name}", count=count)
        finished = ended.code == 2 and case.refused and case.refused in ended.said
        found = without_times(contents(out, not_compared), out)
        wrong = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
        if not ((ended.code == whole.code and ended.in_one_line) or finished) or wrong:
            tried(f"SIGKILL: {name}", failed=True, count=0)
            pytest.fail(f"{name}, seed {seed + attempt - 1}: {wrong}\n{ended.said}")
        shutil.rmtree(out)
    shutil.rmtree(first)


@pytest.mark.abuse
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CASES)
def test_killed_at_random(name, data, tmp_path):
    check(name, data, tmp_path, CASES[name].kills)


@pytest.mark.parametrize("name", ["poison", "purify", "merge", "convert"])
def test_killed_a_few_times(name, data, tmp_path):
    check(name, data, tmp_path, 3, seed=100)
