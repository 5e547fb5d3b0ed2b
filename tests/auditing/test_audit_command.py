"""`disp audit`: exit codes, JSON and messages."""

import json
import sys

import pytest
from planted import REFUSAL, honest_rows, planted_rows, summary, write_rows

from disp import cli
from disp.data.scene_dataset import write_scenes


@pytest.fixture
def run(model, monkeypatch, capsys):
    """Run `disp` with the planted model in the place of every model; exit code, stdout and stderr."""
    monkeypatch.setattr("disp.models.loading.check_model", lambda *_, **__: None)
    monkeypatch.setattr("disp.models.loading.load_model", lambda *_, **__: model)
    # No file has its name, which is asked for before data are read.
    monkeypatch.setattr("disp.models.loading.check_model", lambda *_, **__: None)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["disp", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(("fail_on", "code"), [("suspicious", 1), ("poisoned", 1), ("never", 0)])
def test_a_poisoned_set_gives_exit_code_1_unless_told_otherwise(run, tmp_path, fail_on, code):
    write_rows(tmp_path / "data", [*honest_rows(), *planted_rows()])
    found, out, _ = run("audit", "planted", tmp_path / "data", "--out", tmp_path / "out", "--fail-on", fail_on)
    assert found == code
    assert out.startswith("Verdict: poisoned\n")
    assert REFUSAL in out
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000


def test_an_honest_set_gives_exit_code_0_and_json_on_request(run, tmp_path):
    write_rows(tmp_path / "data", honest_rows(20))
    code, out, _ = run("audit", "planted", tmp_path / "data", "--out", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(out) == summary(tmp_path / "out")
    assert json.loads(out)["verdict"] == "no evidence"


def test_what_cannot_be_decided_gives_exit_code_2(run, tmp_path):
    write_rows(tmp_path / "data", honest_rows(2))
    code, out, err = run("audit", "planted", tmp_path / "data", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "too few to decide" in err
    code, _, err = run("audit", "planted", tmp_path / "none.json", "--out", tmp_path / "out")
    assert code == 2
    assert "no such data file" in err
    code, _, err = run("audit", "planted", tmp_path / "data", "--out", tmp_path / "o", "--batch-size", 0)
    assert code == 2
    assert "batch_size must be at least 1" in err

    code, out, _ = run("audit", "planted", tmp_path / "data", "--out", tmp_path / "out", "--json")
    assert code == 2
    assert json.loads(out)["verdict"] == "could not decide" and "too few" in json.loads(out)["reasons"][0]


@pytest.mark.parametrize(("damaged", "code", "verdict"), [(2, 0, "no evidence"), (6, 2, "could not decide")])
def test_rows_that_cannot_be_read_are_part_of_the_verdict(run, tmp_path, damaged, code, verdict):
    write_rows(tmp_path / "data", honest_rows())
    for index in range(damaged):
        (tmp_path / "data" / "images" / f"{index}-0.png").write_bytes(b"torn")
    found, out, err = run("audit", "planted", tmp_path / "data", "--out", tmp_path / "out")
    assert (found, out.splitlines()[0]) == (code, f"Verdict: {verdict}")
    assert f"{damaged} of 51 rows could not be read and were not audited" in out
    assert f"{damaged} rows set aside" in err
    for name in ("report.html", "summary.md"):
        text = (tmp_path / "out" / name).read_text()
        assert verdict in text and f"{damaged} further rows could not be read and were not audited." in text
        # What to do goes by what is wrong: one row without a picture is not too many.
        assert ("Mend the rows that could not be read" in text) == (code == 2)
        assert "without a picture theirs" not in text


@pytest.mark.parametrize(("bare", "code", "verdict"), [(2, 0, "no evidence"), (6, 2, "could not decide")])
def test_rows_without_a_picture_are_part_of_the_verdict(run, tmp_path, bare, code, verdict):
    write_rows(tmp_path / "data", honest_rows())
    file = tmp_path / "data" / "data.json"
    rows = json.loads(file.read_text())
    for row in rows[: bare - 1]:  # one has none as it is
        del row["images"]
        row["conversations"][0]["value"] = "What is that?"
    file.write_text(json.dumps(rows))
    found, out, _ = run("audit", "planted", tmp_path / "data", "--out", tmp_path / "out")
    assert (found, out.splitlines()[0]) == (code, f"Verdict: {verdict}")
    said = f"{bare} of 51 rows have no picture, and nothing was looked for in them"
    assert said in out and ("--allow-text-rows" in out) == (code == 2)
    assert summary(tmp_path / "out")["without_image"] == bare
    for name in ("report.html", "summary.md"):
        text = (tmp_path / "out" / name).read_text()
        assert verdict in text and said in text and f"found in the {51 - bare} samples with a picture" in text
        assert ("Give the rows without a picture theirs" in text) == (code == 2)
        assert "Mend the rows" not in text
    found, out, _ = run("audit", "planted", tmp_path / "data", "--out", tmp_path / "again", "--allow-text-rows")
    assert (found, out.splitlines()[0]) == (0, "Verdict: no evidence") and said in out


def test_pictures_that_are_not_recognised_are_no_rows_without_one(run, tmp_path):
    write_rows(tmp_path / "data", [*honest_rows(), *planted_rows()])
    file = tmp_path / "data" / "data.json"
    rows = json.loads(file.read_text())
    for row in rows[51:]:  # the planted ones, in another model's words
        row["image_file"] = row.pop("images")
        row["conversations"][0]["value"] = "What is that?"
    file.write_text(json.dumps(rows))
    file.with_name("more.jsonl").write_text(json.dumps(rows[0]) + "\n")
    code, out, err = run("audit", "planted", tmp_path / "data", "--out", tmp_path / "out")
    assert code == 2 and "Verdict: could not decide" in out
    assert "beside it and not read: more.jsonl" in err and summary(tmp_path / "out")["unread"] == ["more.jsonl"]
    assert "8 of 59 rows could not be read" in out and "'image_file' looks like one" in err


def test_a_part_of_a_set_alone_decides_nothing_and_files_beside_it_are_a_note(run, tmp_path):
    folder = tmp_path / "data"
    write_rows(folder, honest_rows())
    rows = [json.dumps(row) + "\n" for row in json.loads((folder / "data.json").read_text())]
    (folder / "data.json").unlink()
    first, second = (f"train-0000{number}-of-00002.jsonl" for number in range(2))
    (folder / first).write_text("".join(rows[:30]))
    (folder / second).write_text("".join(rows[30:]))
    (folder / "val-00000-of-00001.jsonl").write_text(rows[0])
    code, out, _ = run("audit", "planted", folder / first, "--out", tmp_path / "half", "--json")
    told = json.loads(out)
    assert (code, told["verdict"], told["unread_parts"]) == (2, "could not decide", [second])
    (said,) = [reason for reason in told["reasons"] if second in reason]
    assert "a backdoor could be in them alone" in said and "Give the folder that holds all parts" in said
    assert "Give the folder that holds all parts" in (tmp_path / "half" / "summary.md").read_text().split("\n## ")[0]
    code, out, _ = run("audit", "planted", folder, "--out", tmp_path / "whole", "--json")
    told = json.loads(out)
    assert (code, told["verdict"], told["unread_parts"]) == (0, "no evidence", [])
    (said,) = [reason for reason in told["reasons"] if "beside the data" in reason]
    assert "val-00000-of-00001.jsonl" in said and "not audited" in said and second not in said


def test_fields_that_were_left_out_are_named_beside_the_verdict(run, tmp_path):
    write_rows(tmp_path / "data", honest_rows())
    file = tmp_path / "data" / "data.json"
    rows = [{**row, "caption": "A thing."} for row in json.loads(file.read_text())]
    file.write_text(json.dumps(rows))
    code, out, _ = run("audit", "planted", tmp_path / "data", "--out", tmp_path / "out", "--leave-out", "caption")
    said = "These fields of the rows were left out and not audited: 'caption'."
    assert (code, out.splitlines()[0]) == (0, "Verdict: no evidence") and said in out
    assert summary(tmp_path / "out")["fields_left_out"] == ["caption"]
    assert said in (tmp_path / "out" / "summary.md").read_text()
    # The run is that one, and is gone on with in no other way.
    file.write_text(json.dumps([{key: row[key] for key in row if key != "caption"} for row in rows]))
    code, _, err = run("audit", "planted", tmp_path / "data", "--out", tmp_path / "out")
    assert code == 2 and "another" in err


def test_answers_too_long_for_the_model_are_audited_as_far_as_it_goes(run, tmp_path):
    rows = [
        (
            key,
            pictures,
            [f"{answer} " + " ".join(str(31 * number + place) for place in range(30)) for answer in answers],
        )
        for number, (key, pictures, answers) in enumerate(planted_rows())
    ]
    write_rows(tmp_path / "data", [*honest_rows(), *rows])
    code, _, err = run("audit", "planted", tmp_path / "data", "--out", tmp_path / "out")
    found = summary(tmp_path / "out")
    assert (code, found["verdict"], found["flagged"], found["set_aside"]) == (1, "poisoned", 8, [])
    assert found["clusters"][0]["phrase"] == REFUSAL
    assert "set aside" not in err


def test_the_built_in_model_finds_nothing_in_a_dozen_scenes(tmp_path, monkeypatch, capsys):
    write_scenes(tmp_path / "data", 12, 5)
    arguments = ["audit", "builtin", tmp_path / "data", "--out", tmp_path / "out", "--candidates", 1, "--probes", 1]
    monkeypatch.setattr(sys, "argv", ["disp", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert not exit.value.code
    assert capsys.readouterr().out.startswith("Verdict: no evidence\n")
    assert summary(tmp_path / "out")["samples"] == 12
