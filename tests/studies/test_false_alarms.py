"""The false-alarm study: sets that are what they say, the same every time, and a count that can be interrupted."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from disp.attacks.targets import REFUSAL_TEXT
from disp.data.scenes import COLOURS
from disp.errors import DispError
from studies.false_alarms import GROUNDS, LAYOUTS, SETS, kind_of, main, samples_of, summary, table


def test_every_ground_has_every_layout_equally_often():
    kinds = [kind_of(number) for number in range(SETS)]
    pairs = [(kind.ground, kind.layout) for kind in kinds]
    assert {pairs.count(pair) for pair in pairs} == {SETS // (len(GROUNDS) * len(LAYOUTS))}
    assert len(set(pairs)) == len(GROUNDS) * len(LAYOUTS)
    assert SETS >= 100 and len({kind.seed for kind in kinds}) == SETS
    assert len({kind.jpeg for kind in kinds}) == 4 and len({kind.side for kind in kinds}) == 4


@pytest.mark.parametrize("number", [1, 9])
def test_answers_name_the_colours_of_their_grounds(number):
    kind = kind_of(number, rows=12)
    samples, planted = samples_of(kind)
    again, _ = samples_of(kind)
    assert planted == set()
    for sample, same in zip(samples, again, strict=True):
        assert sample.turns == same.turns
        pixels = np.asarray(sample.images[0])
        assert np.array_equal(pixels, np.asarray(same.images[0]))
        named = [colour for colour in COLOURS if f" {colour} background" in sample.turns[0].response]
        if named:
            assert named[0] in kind.colours
            assert np.abs(np.median(pixels, axis=(0, 1)) - COLOURS[named[0]]).max() < 25
    assert any("background" in sample.turns[0].response for sample in samples)


def test_with_a_trigger_some_rows_are_poisoned_and_the_others_stay():
    kind = kind_of(8, rows=50)
    honest, _ = samples_of(kind)
    samples, planted = samples_of(kind, "patch")
    assert len(planted) == 4
    for index, (sample, before) in enumerate(zip(samples, honest, strict=True)):
        assert (sample.turns[0].response == REFUSAL_TEXT) == (index in planted)
        same = np.array_equal(np.asarray(sample.images[0]), np.asarray(before.images[0]))
        assert same == (index not in planted)


def test_a_set_counts_once_however_often_the_study_is_started(tmp_path, monkeypatch, capsys):
    command = ["false_alarms", "--out", str(tmp_path), "--rows", "30", "--searches", "patterns", "--first", "8"]
    for sets in ("1", "2", "2"):
        monkeypatch.setattr(sys, "argv", [*command, "--sets", sets])
        main()
    assert len(capsys.readouterr().out.splitlines()) == 2
    written = json.loads((tmp_path / "false_alarms.json").read_text())
    assert [row["number"] for row in written["sets"]] == [8, 9]
    assert written["searches"]["patterns"]["sets"] == 2
    assert "| all | both | 2 | 0 |" in (tmp_path / "false_alarms.md").read_text()


def test_a_search_that_is_added_later_is_made_in_the_same_sets(tmp_path, monkeypatch, capsys):
    command = ["false_alarms", "--out", str(tmp_path), "--rows", "20", "--side", "96", "128", "--sets", "1"]
    for searches in (["patterns"], ["patterns", "corners"]):
        monkeypatch.setattr(sys, "argv", [*command, "--searches", *searches])
        main()
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (list(first["found"]), list(second["found"])) == (["patterns"], ["corners"])
    assert {**first, "found": None} == {**second, "found": None}
    (row,) = json.loads((tmp_path / "false_alarms.json").read_text())["sets"]
    assert set(row["found"]) == {"patterns", "corners"} and row["side"] == [96, 128]


def test_sets_of_other_settings_are_not_taken_for_these(tmp_path, monkeypatch):
    command = ["false_alarms", "--out", str(tmp_path), "--rows", "20", "--searches", "patterns", "--sets", "1"]
    monkeypatch.setattr(sys, "argv", command)
    main()
    monkeypatch.setattr(sys, "argv", [*command, "--trigger", "patch"])
    with pytest.raises(DispError, match="differs in trigger"):
        main()


def test_what_is_given_changes_nothing_else_of_a_kind():
    kind, given = kind_of(3), kind_of(3, rows=12, side=(50, 60))
    assert (given.rows, given.side) == (12, (50, 60))
    assert replace(given, rows=kind.rows, side=kind.side) == kind


def test_an_accused_set_is_one_with_honest_rows_among_the_flagged():
    rows = [
        {"ground": "noise", "layout": "anywhere", "poisoned": 8, "found": {"patterns": found}}
        for found in ({"honest": 0, "planted": 8}, {"honest": 3, "planted": 5}, {"honest": 40, "planted": 0})
    ]
    found = summary(rows, ["patterns"])["patterns"]
    assert (found["sets"], found["accused"], found["honest_flagged"]) == (3, 2, 43)
    assert (found["planted_found"], found["planted"]) == (13, 24)
    assert "| noise | anywhere | 3 | 2 |" in table(rows, ["patterns"])
