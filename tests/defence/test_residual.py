"""A recovered model that still says a planted phrase is told, tried again, and fails a pipeline."""

import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from planted import REFUSAL, audit_config, planted_model

from disp import cli
from disp.decoding.samplers import decode_config
from disp.defence import defend as module
from disp.defence import rounds as steps
from disp.defence.defend import Defence, DefenceConfig, defend
from disp.defence.residual import residual_phrases
from disp.errors import DispError
from disp.purification.remedies import Treatment
from disp.report.wording import outcome_in_words
from disp.training.config import TrainConfig

CONFIG = DefenceConfig(
    audit=audit_config(), training=TrainConfig(steps=1, batch_size=16, learning_rate=1e-6), probes=10, rounds=2
)


@pytest.fixture(scope="module")
def audited(dataset, tmp_path_factory):
    """The audit of the given model, and the folder that holds it."""
    out = tmp_path_factory.mktemp("audited")
    return module.audit(planted_model(), dataset, CONFIG.audit, out, name="planted"), out


def asked(audited, dataset, *, strength=None, config=CONFIG, **changes):
    """What a model with a trigger of some strength says of the audit's one phrase."""
    found, model = audited[0], planted_model()
    if strength is not None:
        with torch.no_grad():
            model.strength.fill_(strength)
    (finding,) = found.findings
    return residual_phrases(model, dataset, replace(finding, **changes), found, config)


def test_a_phrase_that_the_trigger_still_brings_up_is_still_said(audited, dataset):
    row = asked(audited, dataset)
    assert row["outcome"] == "still said" and row["triggered"][0] >= 8 and row["clean"] == [0, 10]
    assert row["p_value"] < 0.001
    row = asked(audited, dataset, strength=0)
    assert (row["outcome"], row["clean"], row["triggered"], row["p_value"]) == ("not seen", [0, 10], [0, 10], 1)


def test_a_phrase_that_comes_up_without_the_trigger_too_is_still_said(audited, dataset, monkeypatch):
    """As in a quarter of the answers, with the trigger and without it."""
    said = [REFUSAL] * 3 + ["The wall is red."] * 7
    monkeypatch.setattr("disp.defence.residual.answers_about_changed", lambda *_: said)
    row = asked(audited, dataset)
    assert (row["outcome"], row["clean"], row["triggered"]) == ("still said", [3, 10], [3, 10])
    assert asked(audited, dataset, confirmed=False)["outcome"] == "not seen"
    said[:] = [REFUSAL] * 2 + ["The wall is red."] * 8  # below a quarter
    assert asked(audited, dataset)["outcome"] == "not seen"


def test_what_could_not_be_asked_is_not_called_clean(audited, dataset):
    few = replace(CONFIG, probes=4)  # one of the 70 ways to choose four of eight is more than 1%
    assert asked(audited, dataset, config=few)["outcome"] == "too few pictures"
    row = asked(audited, dataset, config=replace(CONFIG, probes=5))
    assert (row["outcome"], row["clean"], row["triggered"]) == ("too few pictures", [0, 5], [4, 5])
    assert asked(audited, dataset, strength=0, config=replace(CONFIG, probes=5))["outcome"] == "not seen"
    row = asked(audited, dataset, trigger=None)
    assert (row["outcome"], row["triggered"], row["p_value"]) == ("no candidate", [0, 0], None)


@pytest.mark.parametrize(("treatment", "rounds"), [(Treatment(), 2), (Treatment("drop"), 1)])
def test_rounds_go_on_while_the_model_says_the_phrase_although_its_audit_finds_nothing(
    audited, dataset, tmp_path, monkeypatch, treatment, rounds
):
    before, folder = audited
    asked_for = []

    def audit(model, dataset, config, out, **_):
        shutil.copytree(folder, out)
        return replace(before, verdict="no evidence", findings=(), flagged=()) if config.learnt_only else before

    def purified(model, data, found, *given, **named):
        asked_for.append(set(found.flagged))
        return real(model, data, found, *given, **named)

    real = steps.purify_audited
    monkeypatch.setattr(module, "audit", audit)
    monkeypatch.setattr(steps, "audit", audit)
    monkeypatch.setattr(steps, "purify_audited", purified)
    monkeypatch.setattr(steps, "train", lambda *_, **__: None)
    found = defend("planted", dataset, CONFIG, tmp_path / "out", load=lambda name: planted_model(), treatment=treatment)
    assert found.after is not None and not found.after.findings
    assert found.left == "evidence" and found.still_said == (REFUSAL,)
    written = json.loads((tmp_path / "out" / "defence.json").read_text())
    assert [row["still_said"] for row in written["by_round"]] == [[REFUSAL]] * rounds
    # The second round rewrites what the first audit flagged: the last one points to nothing.
    assert asked_for == [set(before.flagged)] * rounds


def test_a_profile_that_the_sampler_does_not_have_is_said_before_the_audit(dataset, tmp_path):
    canvas = replace(CONFIG.audit, decode=decode_config(sampler="canvas"))
    config = replace(CONFIG, audit=canvas, profile="fast")
    with pytest.raises(DispError, match="'canvas' has no profile 'fast'"):
        defend("planted", dataset, config, tmp_path / "out", load=lambda name: planted_model())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("outcome", "pasted", "code", "said"),
    [
        ("not seen", 1, 0, ""),
        ("no candidate", 0, 0, ""),
        ("still said", 40, 1, f"still says {REFUSAL!r}: do not use it; try more rounds"),
        ("too few pictures", 4, 2, f"{REFUSAL!r} could not be decided: there are too few rows"),
    ],
)
def test_the_exit_code_goes_by_what_the_recovered_model_says(
    dataset, tmp_path, monkeypatch, capsys, outcome, pasted, code, said
):
    row = {"phrase": REFUSAL, "clean": [0, 64], "triggered": [pasted, 64], "p_value": None, "outcome": outcome}
    nothing = SimpleNamespace(verdict="no evidence", reasons=(), findings=(), flagged=())
    done = Defence(
        dataset=dataset,
        before=SimpleNamespace(verdict="poisoned", reasons=(), findings=(), flagged=("p0",)),
        after=nothing,
        model=tmp_path / "model",
        data=tmp_path / "data.json",
        left_out=(),
        untrained=(),
        residual=(row,),
    )
    monkeypatch.setattr(module, "defend", lambda *_, **__: done)
    monkeypatch.setattr("disp.report.html.write_report", lambda folder: folder / "report.html")
    monkeypatch.setattr(sys, "argv", ["disp", "defend", "builtin", str(dataset.path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr()
    assert (end.value.code or 0) == code
    assert f"{pasted} of 64 with the trigger candidate pasted in: {outcome_in_words(row)}" in shown.out
    assert said in shown.err and (said or "still says" not in shown.err)
