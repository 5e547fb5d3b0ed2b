"""Names that come with the data give a terminal no orders, and end no line, wherever they are shown."""

import json
import sys

import pytest
from data.test_webdataset import GOOD, pack, qa
from data.written import png

from disp import cli
from disp.data.loading import load_dataset
from disp.errors import DispError

EVIL = "\x1b[31mRED\n0 rows set aside\u202e"
SHOWN = "\\x1b[31mRED\\n0 rows set aside\\u202e"


def shown(capsys, monkeypatch, *command):
    monkeypatch.setattr(sys, "argv", ["disp", *map(str, command)])
    with pytest.raises(SystemExit):
        cli.main()
    return "".join(capsys.readouterr())


def check(text):
    # An error is said in one line: an end of line in it becomes a blank.
    assert SHOWN in text or SHOWN.replace("\\n", " ") in text, text
    assert not any(c in text for c in "\x1b\u202e") and "\n0 rows set aside" not in text


@pytest.mark.parametrize("command", [("check",), ("plan", "builtin"), ("check", "--strict")])
def test_names_of_members(command, tmp_path, capsys, monkeypatch):
    pack(tmp_path / "s.tar", *GOOD, (f"{EVIL}.{EVIL}", png(1)), (f"{EVIL}.json", b"{"))
    check(shown(capsys, monkeypatch, *command, tmp_path / "s.tar"))


def test_names_of_files(tmp_path, capsys, monkeypatch):
    (tmp_path / f"{EVIL}.json").write_text("[]")
    (tmp_path / "other.json").write_text("[]")
    check(shown(capsys, monkeypatch, "check", tmp_path))


def test_names_of_fields_and_ids(tmp_path, capsys, monkeypatch):
    pack(tmp_path / "s.tar", *GOOD, ("0.png", png(1)), ("0.json", json.dumps({EVIL: 1}).encode()))
    check(shown(capsys, monkeypatch, "check", tmp_path / "s.tar"))


def test_a_problem_in_plain_letters_of_any_script_stays_as_it_is(tmp_path):
    pack(tmp_path / "s.tar", *GOOD, ("猫 é.png", png(1)), ("猫 é.json", qa() + b"x"))
    (problem,) = load_dataset(tmp_path / "s.tar").problems
    assert problem.place == "s.tar:sample 猫 é"
    with pytest.raises(DispError, match="猫 é"):
        load_dataset(tmp_path / "s.tar", strict=True)
