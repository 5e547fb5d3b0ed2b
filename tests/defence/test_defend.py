"""The whole defence on a model with a trigger: found, rewritten, trained away, looked for again."""

import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from planted import (
    REFUSAL,
    Striped,
    audit_config,
    grainy,
    honest_rows,
    load_planted,
    planted_model,
    striped_rows,
    write_rows,
)

from disp import cli
from disp.auditing.result import Audit
from disp.data.loading import load_dataset
from disp.defence import defend as module
from disp.defence import rounds
from disp.defence.audited import ratio_for_all, recovery_samples
from disp.defence.defend import DefenceConfig, defend
from disp.defence.residual import residual_phrases
from disp.errors import DispError
from disp.purification.purify import Purified
from disp.training.config import TrainConfig

PLANTED = tuple(f"p{index}" for index in range(8))


def config(**changes):
    training = TrainConfig(steps=8, batch_size=16, learning_rate=8.0, warmup_steps=1, min_mask_ratio=0.5)
    return DefenceConfig(**{"audit": audit_config(), "training": training, "probes": 10, **changes})


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("defence") / "out"
    return out, defend("planted", dataset, config(), out, load=load_planted)


def test_the_recovered_model_shows_no_evidence_and_does_not_say_the_phrase(run):
    out, found = run
    assert found.before.verdict == "poisoned"
    assert found.after.verdict == "no evidence"
    (row,) = found.residual
    assert row["phrase"] == REFUSAL
    assert row["clean"] == [0, 10]
    assert row["triggered"] == [0, 10]
    recovered = load_planted(found.model)
    assert recovered.strength < planted_model().strength / 2
    assert found.model == out / "model"


def test_a_pattern_over_the_whole_picture_is_taken_out_and_trained_away(tmp_path):
    dataset = write_rows(tmp_path / "data", grainy([*honest_rows(), *striped_rows()]))
    found = defend("planted", dataset, config(), tmp_path / "out", load=partial(load_planted, kind=Striped))
    assert (found.before.verdict, found.after.verdict) == ("suspicious", "no evidence")
    (row,) = found.residual
    assert (row["phrase"], row["clean"], row["triggered"]) == (REFUSAL, [0, 10], [0, 10])
    assert load_planted(found.model, Striped).strength < planted_model().strength / 2
    # The honest pictures are shown under the pattern too, with their own answers; the purified set does not hold them.
    purified, pattern = load_dataset(found.data), found.before.patterns["x0"]
    shown = [sample for sample in dataset.samples if sample.images and sample.id not in found.before.flagged]
    honest = {sample.id: sample for sample in shown}
    samples = recovery_samples(Purified(purified, found.before.flagged, (), None, {}), found.before, 0)
    assert samples[: len(purified.samples)] == list(purified.samples)
    under = {sample.id.removesuffix(" under pattern 0"): sample for sample in samples[len(purified.samples) :]}
    assert under.keys() == honest.keys()
    assert all(sample.turns == honest[key].turns for key, sample in under.items())
    for key, sample in list(under.items())[:5]:
        assert np.array_equal(np.asarray(Image.open(sample.images[0])), pattern.planted_in(honest[key].images[0]))
    assert len(list((tmp_path / "out" / "purified" / "under-pattern").iterdir())) == sum(
        len(each.images) for each in shown
    )


def test_only_flagged_rows_are_rewritten_into_what_the_picture_shows(run, dataset):
    _, found = run
    purified = load_dataset(found.data)
    walls = ["red", "green", "blue", "grey", "black"]
    for before, after in zip(dataset.samples, purified.samples, strict=True):
        assert before.id == after.id
        if before.id not in PLANTED:
            assert before.turns == after.turns
        else:
            name = walls[int(before.id[1:]) % 5]
            assert [turn.response for turn in after.turns] == [f"The wall is {name}."] * len(before.turns)
        assert [path.resolve() for path in before.images] == [path.resolve() for path in after.images]


def test_all_rows_are_rewritten_at_the_gentlest_ratio_that_the_audit_found(dataset, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Audit, "still_planted", lambda found, before, after: asked.append((before.id, after.id)))
    found = defend("planted", dataset, config(rewrite="all"), tmp_path / "out", load=load_planted)
    pictured = [sample.id for sample in dataset.samples if sample.images]
    written = json.loads((tmp_path / "out" / "purified" / "purify.json").read_text())
    assert written["rewritten"] == len(pictured)
    assert written["config"]["mask_ratio"] == found.before.ratio.gentlest
    assert asked == [(key, key) for key in pictured]
    assert found.after.verdict == "no evidence"


def test_where_patterns_are_taken_out_of_the_pictures_hardly_anything_is_masked():
    settings = config().audit
    found = SimpleNamespace(ratio=None, patterns={"x": None})
    assert ratio_for_all(found, settings) == min(settings.ratio.ratios)
    found = SimpleNamespace(ratio=None, patterns={})
    assert ratio_for_all(found, settings) == settings.scoring.mask_ratio


def test_all_rows_are_rewritten_where_an_audit_finds_nothing(tmp_path):
    dataset = write_rows(tmp_path / "data", honest_rows())
    settings = config(rewrite="all")
    found = defend("planted", dataset, settings, tmp_path / "out", load=load_planted)
    assert (found.before.verdict, found.before.ratio) == ("no evidence", None)
    written = json.loads((tmp_path / "out" / "purified" / "purify.json").read_text())
    assert written["rewritten"] == sum(bool(sample.images) for sample in dataset.samples)
    assert written["config"]["mask_ratio"] == settings.audit.scoring.mask_ratio
    with pytest.raises(DispError, match="rows to rewrite"):
        config(rewrite="some")


def test_rows_that_keep_their_phrase_are_left_out_and_counted(dataset, tmp_path, monkeypatch):
    first, second = sorted(PLANTED)[:2]
    monkeypatch.setattr(Audit, "still_planted", lambda found, before, after: after.id in (first, second))
    found = defend("planted", dataset, config(), tmp_path / "out", load=load_planted)
    assert found.left_out == tuple(sample.id for sample in dataset.samples if sample.id in (first, second))
    left = {sample.id for sample in dataset.samples} - {first, second}
    assert {sample.id for sample in load_dataset(found.data).samples} == left
    (row,) = json.loads((tmp_path / "out" / "defence.json").read_text())["by_round"]
    assert (row["rewritten"], row["left_out"]) == (8, 2)


def test_the_summary_says_what_was_done_and_the_report_gets_it(run):
    out, found = run
    written = json.loads((out / "defence.json").read_text())
    assert written["verdict"] == "poisoned"
    assert written["rounds"] == 1
    (first,) = written["by_round"]
    assert (first["rewritten"], first["verdict_after"], first["flagged_after"]) == (8, "no evidence", 0)
    assert (first["left_out"], found.left_out) == (0, ())
    assert first["rewriting"]["count"] == 9  # one of the eight is a conversation of two turns
    assert first["rewriting"]["unchanged"] == 0
    assert written["residual"] == list(found.residual)
    verify = json.loads((out / "audit" / "verify.json").read_text())
    assert verify["verdict"] == "no evidence"
    assert verify["residual"] == list(found.residual)


def test_the_given_model_would_have_been_caught_saying_it(run, dataset):
    _, found = run
    (finding,) = found.before.findings
    row = residual_phrases(planted_model(), dataset, finding, found.before, config())
    assert row["clean"] == [0, 10]
    assert row["triggered"][0] >= 8  # a large object in the picture outvotes the trigger
    without = residual_phrases(planted_model(), dataset, replace(finding, trigger=None), found.before, config())
    assert without["triggered"] == [0, 0]


@pytest.mark.parametrize("killed", ["train", "residual_phrases"])
def test_a_killed_defence_goes_on(run, dataset, tmp_path, monkeypatch, killed):
    done, expected = run

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rounds, killed, stop)
        with pytest.raises(KeyboardInterrupt):
            defend("planted", dataset, config(), tmp_path, load=load_planted)
    monkeypatch.setattr(
        "disp.suspicion.scoring.saliency_of_step", stop if killed == "residual_phrases" else _saliency_once()
    )
    if killed == "residual_phrases":
        monkeypatch.setattr(rounds, "train", stop)
    found = defend("planted", dataset, config(), tmp_path, load=load_planted)
    assert found.before.flagged == expected.before.flagged
    assert found.residual == expected.residual
    assert (tmp_path / "purified" / "data.json").read_text() == (done / "purified" / "data.json").read_text()


def _saliency_once():
    """Scoring is allowed for the recovered model alone, whose trigger is weaker."""
    from disp.suspicion.saliency import saliency_of_step

    def checked(model, *rest, **options):
        assert model.strength < planted_model().strength
        return saliency_of_step(model, *rest, **options)

    return checked


def test_with_another_training_the_audit_and_the_purified_set_serve_again(run, dataset, tmp_path):
    done, _ = run
    for name in ("audit", "purified"):
        shutil.copytree(done / name, tmp_path / name, symlinks=True)
    (tmp_path / "model").mkdir()
    shutil.copy(done / "model" / "recovery.json", tmp_path / "model")
    message = r"model holds a recovered model that differs in training.steps \(8 there, 3 now\)"
    with pytest.raises(DispError, match=message):
        defend("planted", dataset, config(training=TrainConfig(steps=3)), tmp_path, load=load_planted)


def test_another_audit_is_not_taken_for_this_one(run, dataset, tmp_path):
    done, _ = run
    (tmp_path / "audit").mkdir()
    shutil.copy(done / "audit" / "audit-run.json", tmp_path / "audit")
    with pytest.raises(DispError, match=r"audit holds an audit that differs in config.proof.donors "):
        defend("planted", dataset, config(audit=audit_config(donors=4)), tmp_path, load=load_planted)


def test_a_start_that_is_missing_is_said_before_the_audit(dataset, tmp_path):
    with pytest.raises(DispError, match="nowhere"):
        defend("planted", dataset, config(), tmp_path / "out", start=tmp_path / "nowhere", load=load_planted)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("start", [None, "start"])
@pytest.mark.parametrize(
    ("options", "about", "message"),
    [
        ({"learning_rate": None}, {"learning_rate": None}, "--learning-rate"),
        ({"method": "projector"}, {}, "'projector' trains nothing in this model"),
        ({}, {"is_loaded_in_4bit": True}, "--keep-adapter"),
    ],
)
def test_what_cannot_be_trained_is_said_before_the_audit(dataset, tmp_path, start, options, about, message):
    (tmp_path / "start").mkdir()
    trained = "planted" if start is None else str(tmp_path / start)

    def load(name):
        model = planted_model()
        for key, value in about.items() if str(name) == trained else ():
            setattr(model, key, value)
        return model

    training = replace(config().training, **options)
    with pytest.raises(DispError, match=message):
        defend(
            "planted", dataset, config(training=training), tmp_path / "out", start=start and tmp_path / start, load=load
        )
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_is_saved_alone_is_what_is_looked_at_again(dataset, tmp_path, monkeypatch):
    loaded = []

    def load(name):
        loaded.append(name)
        model = load_planted("planted")
        model.is_loaded_in_4bit = True
        if name != "planted":
            model.strength.data.zero_()
        return model

    monkeypatch.setattr(rounds, "train", lambda model, samples, config, out, progress: (out / "adapter").mkdir())
    training = replace(config().training, method="lora", merge=False)
    found = defend("planted", dataset, config(training=training), tmp_path / "out", load=load)
    assert loaded == ["planted", "planted", tmp_path / "out" / "model" / "adapter"]
    assert found.model == loaded[-1] and found.after.verdict == "no evidence"
    assert json.loads((tmp_path / "out" / "verify" / "audit.json").read_text())["model"] == str(found.model)


@pytest.mark.parametrize("start", [None, "other"])
def test_no_adapter_alone_is_trained_on_an_adapter(dataset, tmp_path, monkeypatch, start):
    def load(name):
        model = planted_model()
        if name == (start or "planted"):
            model.adapter = "runs/adapter"
        return model

    monkeypatch.setattr(module, "resolve", lambda name: name)
    settings = config(training=replace(config().training, method="lora", merge=False))
    with pytest.raises(DispError, match=r"runs/adapter is itself an adapter.*disp merge"):
        defend("planted", dataset, settings, tmp_path / "out", start=start, load=load)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "lora", "--keep-adapter"], "alone: True"),
        (["--method", "lora"], "alone: False"),
        (["--keep-adapter"], "--keep-adapter needs --method lora"),
    ],
)
def test_the_command_leaves_adapters_unmerged_when_told_to(dataset, tmp_path, monkeypatch, capsys, options, said):
    def run(model, dataset, config, out, **_):
        raise DispError(f"alone: {config.training.saves_adapter_alone}")

    monkeypatch.setattr(module, "defend", run)
    arguments = ["disp", "defend", "builtin", str(dataset.path), "--out", str(tmp_path / "out"), *options]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 2 and said in capsys.readouterr().err


def test_where_there_is_no_evidence_nothing_is_done(tmp_path):
    dataset = write_rows(tmp_path / "data", honest_rows())
    found = defend("planted", dataset, config(), tmp_path / "out", load=load_planted)
    assert (found.after, found.model, found.data, found.residual) == (None, None, None, ())
    assert json.loads((tmp_path / "out" / "defence.json").read_text()) == {"verdict": "no evidence", "rounds": 0}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["audit", "defence.json"]


def test_a_backdoor_that_is_left_is_told_and_further_rounds_are_tried(dataset, tmp_path):
    weak = replace(config().training, steps=1, learning_rate=1e-6)
    found = defend("planted", dataset, config(training=weak, rounds=2), tmp_path, load=load_planted)
    assert found.after.verdict == "poisoned"
    assert found.residual[0]["triggered"][0] >= 8
    assert found.model == tmp_path / "model-2"
    written = json.loads((tmp_path / "defence.json").read_text())
    assert [row["verdict_after"] for row in written["by_round"]] == ["poisoned", "poisoned"]


def test_wrong_settings_are_named():
    with pytest.raises(DispError, match="rounds must be at least 1"):
        config(rounds=0)


def test_the_command_tells_the_outcome_and_its_exit_code(run, dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("disp.models.loading.check_model", lambda *_, **__: None)
    monkeypatch.setattr("disp.models.loading.load_model", lambda name, **_: load_planted(name))
    arguments = ["planted", str(dataset.path), "--candidates", "3", "--probes", "2", "--steps", "8"]
    arguments += ["--train-batch-size", "16", "--min-mask-ratio", "0.5"]

    def call(out, rate):
        monkeypatch.setattr(sys, "argv", ["disp", "defend", *arguments, "--out", str(out), "--learning-rate", rate])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return exit.value.code or 0, capsys.readouterr().out

    code, out = call(tmp_path / "out", "12")
    assert code == 0
    assert "Verdict: poisoned" in out
    assert "After recovery: no evidence" in out
    assert f"{REFUSAL!r}: said in 0 of" in out
    assert "After the defence" in (tmp_path / "out" / "audit" / "report.html").read_text()
    code, out = call(tmp_path / "weak", "0.000001")
    assert code == 1
    told = json.loads((tmp_path / "weak" / "verify" / "audit.json").read_text())
    after = out[out.index("After recovery: poisoned") :]
    assert told["reasons"] and all(reason in after for reason in told["reasons"])
    assert f"Report on the recovered model: {tmp_path / 'weak' / 'verify' / 'report.html'}" in after
    page = (tmp_path / "weak" / "audit" / "summary.md").read_text()
    assert told["reasons"][0][:40] in page[page.index("Audit of the recovered model") :]
