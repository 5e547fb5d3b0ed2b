"""`disp baseline` on the built-in model, and the page that lists the defences."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from planted import manifest, wall, write_rows

from disp.baselines.table import DEFENCES
from disp.cli import app
from disp.data.loading import load_dataset
from disp.errors import DispError
from disp.models.builtin.model import BuiltinModel
from disp.models.loading import load_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = [(f"r{number}", [wall("red")], ["There is a red apple."]) for number in range(6)]
    return write_rows(tmp_path_factory.mktemp("rows") / "set", rows).path.parent


def run(*arguments, verb="baseline"):
    app([verb, *map(str, arguments)], result_action="return_value", exit_on_error=False, print_error=False)


@pytest.mark.parametrize("name", DEFENCES)
def test_every_defence_runs_on_the_builtin_model(data, tmp_path, capsys, name):
    told = ["--set", f"manifest={manifest(tmp_path, ['r1'])}"] if name == "perfect-drop" else []
    run(name, "builtin", data, "--out", tmp_path / "out", *told)
    out = capsys.readouterr().out
    assert f"The set to train on: {tmp_path / 'out' / 'data.json'}" in out
    left = load_dataset(tmp_path / "out").samples
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"r{number}" for number in range(6)]
    assert len(left) == sum(not row.get("dropped") for row in rows)
    assert ("rows dropped" in out) == ("dropped" in rows[0])


def test_parameters_and_truth(data, tmp_path, capsys):
    truth = manifest(tmp_path, ["r0", "r1"])
    run("random-drop", "builtin", data, "--out", tmp_path / "out", "--set", "dropped_share=0.5", "--truth", truth)
    out = capsys.readouterr().out
    assert out.startswith("3 of 6 rows dropped: rows were drawn at random\n")
    summary = json.loads((tmp_path / "out" / "baseline.json").read_text(encoding="utf-8"))
    hits = len({"r0", "r1"} & set(summary["dropped"]))
    assert summary["config"]["parameters"] == {"dropped_share": 0.5}
    assert (summary["truth"]["precision"], summary["truth"]["recall"]) == (hits / 3, hits / 2)
    scores = {row["id"]: row["score"] for row in map(json.loads, (tmp_path / "out" / "scores.jsonl").open())}
    wins = [scores[one] > scores[other] for one in ("r0", "r1") for other in ("r2", "r3", "r4", "r5")]
    assert summary["truth"]["auroc"] == pytest.approx(sum(wins) / 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["byee", "builtin", "x"], "Did you mean 'bye'"),
        (["gtm", "builtin", "x", "--set", "ratio"], "--set takes NAME=VALUE"),
        (["gtm", "builtin", "x", "--set", "ratio=2"], r"ratio must be in \[0, 1\], got 2"),
        (["perfect-drop", "builtin", "SOME"], "perfect-drop needs the manifest of the planted attack"),
        (["perfect-drop", "builtin", "SOME", "--set", "manifest=nope"], "nope"),
        (["gtm", "builtin", "SOME", "--truth", "nope"], "a manifest measures filters .*, and gtm drops no row"),
        (["gtm", "builtin", "nowhere"], "nowhere: no such data file"),
    ],
)
def test_mistakes(data, tmp_path, arguments, message):
    arguments = [str(data) if each == "SOME" else each for each in arguments]
    with pytest.raises(DispError, match=message):
        run(*arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "run.json").exists()  # so that what the message says can be done


def test_steps_are_for_defences_that_answer(data, tmp_path):
    with pytest.raises(DispError, match="bye answers nothing; leave the settings of decoding out"):
        run("bye", "builtin", data, "--out", tmp_path / "out", "--steps", "2")
    run("mask-all", "builtin", data, "--out", tmp_path / "out", "--steps", "2")
    config = json.loads((tmp_path / "out" / "baseline.json").read_text(encoding="utf-8"))["config"]
    assert config["decode"]["steps"] == 2


def test_settings_that_are_the_usual_ones_change_nothing(data, tmp_path):
    """The default, the default by its name, and the model's own steps: one run goes on in the other's folder."""
    out, own = tmp_path / "out", load_model("builtin", device="cpu").generation_defaults["steps"]
    for options in ([], ["--profile", "exact"], ["--steps", own]):
        run("mask-all", "builtin", data, "--out", out, *options)
        decode = json.loads((out / "run.json").read_text(encoding="utf-8"))["config"]["decode"]
        assert (decode["open_slots"], decode["end_early"], decode["refresh"]) == (True, True, None)
    with pytest.raises(DispError, match=r"differs in config\.decode\.steps \(32 there, 16 now\)"):
        run("mask-all", "builtin", data, "--out", out, "--profile", "fast")


def test_evaluation_under_a_defence(data, capsys):
    """Without the pictures all questions are the same, so all answers are, and they score alike."""
    run("builtin", data, "--defence", "mask-all", verb="evaluate")
    blind = json.loads(capsys.readouterr().out)
    run("builtin", data, "--defence", "random-mask", "--set", "ratio=1.0", verb="evaluate")
    assert json.loads(capsys.readouterr().out) == blind
    run("builtin", data, verb="evaluate")
    assert json.loads(capsys.readouterr().out)["counts"] == blind["counts"]
    with pytest.raises(DispError, match="bye filters fine-tuning sets and answers nothing"):
        run("builtin", data, "--defence", "bye", verb="evaluate")
    with pytest.raises(DispError, match="--set is for --defence"):
        run("builtin", data, "--set", "ratio=1.0", verb="evaluate")


def test_a_profile_decodes_under_a_defence_too(data, capsys, monkeypatch):
    passes = []
    whole, slots = BuiltinModel.denoise, BuiltinModel.denoise_slots
    monkeypatch.setattr(BuiltinModel, "denoise", lambda *given, **more: passes.append(0) or whole(*given, **more))
    monkeypatch.setattr(BuiltinModel, "denoise_slots", lambda *given, **more: passes.append(0) or slots(*given, **more))

    def counted(*options):
        passes.clear()
        run("builtin", data, *options, "--limit", "2", "--batch-size", "1", verb="evaluate")
        capsys.readouterr()
        return len(passes)

    assert counted("--defence", "jpeg", "--profile", "fastest") < counted("--defence", "jpeg")


def test_the_page_is_up_to_date():
    script = Path(__file__).parents[2] / "scripts" / "baseline_tables.py"
    spec = spec_from_file_location("baseline_tables", script)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.PAGE.read_text(encoding="utf-8")
    assert page == module.written(page), "run python scripts/baseline_tables.py"
