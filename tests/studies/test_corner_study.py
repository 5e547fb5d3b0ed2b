"""The study of corners: its sets are what they say, it can be interrupted, and its tables count what was found."""

import json
import sys

from disp.data.sample import image_size
from studies.corner_study import main, tables


def test_a_set_is_searched_once_however_often_the_study_is_started(tmp_path, monkeypatch, capsys):
    command = ["corner_study", "--out", str(tmp_path), "--rows", "60", "--seeds", "0"]
    for sizes in (["224"], ["224", "224, 336, a few 280"]):
        monkeypatch.setattr(sys, "argv", [*command, "--triggers", "black 20, top left", "--sizes", *sizes])
        main()
        written = json.loads((tmp_path / "corners.json").read_text())["sets"]
        seen = {image_size(file) for file in (tmp_path / "pictures").iterdir()}
        assert seen == {(224, 224)} if len(sizes) == 1 else {(224, 224), (336, 336)} <= seen
    assert len(capsys.readouterr().out.splitlines()) == len(written) == 2
    for each in written:
        assert each["planted"] == 12
        assert each["found"]["corners"]["planted"] == 12 and each["found"]["corners"]["honest"] == 0
    assert "| 224 | 0 | black 20, top left | refusal | 75-95 | 12 of 60 |" in (tmp_path / "corners.md").read_text()


def test_honest_sets_are_counted_by_kind():
    found = [{"patterns": {"honest": each}, "corners": {"honest": 0}} for each in (0, 3, 40)]
    sets = [{"honest": kind, "found": each} for kind, each in zip(("none", "none", "watermarks"), found, strict=True)]
    assert "| none | 2 | 1 | 0 |" in tables(sets)
    assert "| watermarks | 1 | 1 | 0 |" in tables(sets)
    assert "poisoned" not in tables(sets)


def test_recall_is_of_the_planted_rows():
    found = {"patterns": {"planted": 6, "honest": 0}, "corners": {"planted": 8, "honest": 2}}
    told = {"sizes": "224", "seed": 1, "trigger": "t", "target": "refusal", "jpeg": [75, 95], "planted": 8, "rows": 40}
    assert "| 8 of 40 | 0.750 | 1.000 | 2 |" in tables([told | {"found": found}])
