"""Which of several processes this one is, from what launchers say, and what is said where they say nonsense."""

from __future__ import annotations

import os

import pytest
from planted import wall, write_rows

from disp.cli import app
from disp.commands.sharing import SHARING
from disp.errors import DispError
from disp.locks import locked
from disp.processes import Place, place


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    for name in list(os.environ):
        if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE") or name.startswith("SLURM_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, Place(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Place(3, 4, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Place(3, 4, 1, 2)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}, Place(5, 8, 1)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "9", "SLURM_JOB_ID": "1"}, Place(5, 8, 0)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}, Place(5, 8, 0, 4)),
        # A batch script of a job with eight tasks is one process.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, Place(0, 1, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_ID": "1"}, Place(0, 1, 0)),
    ],
)
def test_where_this_process_stands(monkeypatch, said, expected):
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert place() == expected


WRONG = [
    {"RANK": "4", "WORLD_SIZE": "4"},
    {"RANK": "a", "WORLD_SIZE": "4"},
    {"WORLD_SIZE": ""},
    {"WORLD_SIZE": "0"},
    {"LOCAL_RANK": "1.5"},
    {"LOCAL_WORLD_SIZE": "two"},
    {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS_PER_NODE": "x"},
]


@pytest.mark.parametrize("said", WRONG, ids=str)
def test_numbers_that_cannot_be_are_named(monkeypatch, said):
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DispError, match=r"RANK|WORLD_SIZE|NTASKS"):
        place()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = [(f"r{number}", [wall("red")], ["There is a red apple."]) for number in range(2)]
    return write_rows(tmp_path_factory.mktemp("rows") / "set", rows).path


COMMANDS = {
    "plan": ("--recipe", "disp"),
    "train": ("--out", "OUT", "--steps", "1"),
    "purify": ("--out", "OUT"),
    "defend": ("--out", "OUT", "--preset", "published"),
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_commands_say_what_is_wrong_before_they_begin(data, tmp_path, monkeypatch, verb):
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
        options = [str(tmp_path / "out") if each == "OUT" else each for each in COMMANDS[verb]]
        with pytest.raises(DispError, match=f"^{name} must be a number, got ''; it is set by torchrun or Slurm$"):
            app([verb, "builtin", str(data), *options], print_error=False, exit_on_error=False)
        monkeypatch.delenv(name)
    assert not (tmp_path / "out").exists()


def test_a_lock_is_not_left_out_for_a_rank_that_is_no_number(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(DispError, match="RANK must be a number, got 'first'"), locked(tmp_path):
        pass


def test_a_batch_script_has_the_memory_for_itself(monkeypatch):
    """Of eight tasks a node, of which none is started yet."""
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "x")
    assert SHARING._beside("cpu") == 1
