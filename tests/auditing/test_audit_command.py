"""`disp audit`: exit codes, JSON and messages."""

import json
import sys
from pathlib import Path

import pytest

from disp import cli
from disp.data.scene_dataset import write_scenes

sys.path.insert(0, str(Path(__file__).parent))
from planted import REFUSAL, honest_rows, planted_rows, summary, write_rows


@pytest.fixture
def run(model, monkeypatch, capsys):
    """Run `disp` with the planted model in the place of every model; exit code, stdout and stderr."""
    monkeypatch.setattr("disp.models.loading.load_model", lambda *_, **__: model)

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
    write_rows(tmp_path / "data", honest_rows(12))
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


def test_the_built_in_model_finds_nothing_in_a_dozen_scenes(tmp_path, monkeypatch, capsys):
    write_scenes(tmp_path / "data", 12, 5)
    arguments = ["audit", "builtin", tmp_path / "data", "--out", tmp_path / "out", "--candidates", 1, "--probes", 1]
    monkeypatch.setattr(sys, "argv", ["disp", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert not exit.value.code
    assert capsys.readouterr().out.startswith("Verdict: no evidence\n")
    assert summary(tmp_path / "out")["samples"] == 12
