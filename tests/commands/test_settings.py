"""The same setting means the same on the command line and in Python."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planted import wall, write_rows

from disp.auditing.config import AuditConfig
from disp.cli import app
from disp.commands.scoring import Auditing, Estimating, PlannedRewriting, Rewriting
from disp.defence.config import DefenceConfig
from disp.models.loading import load_model
from disp.purification.config import PurifyConfig
from disp.suspicion.config import SaliencyConfig


@pytest.fixture(scope="module")
def model():
    return load_model("builtin", device="cpu")


@pytest.mark.parametrize("given", [{}, {"mask_ratio": 0.3}, {"probes": 5, "candidates": 2, "score": "directional"}])
@pytest.mark.parametrize(("mode", "probes"), [("selective", 4), ("all", 8), ("random", 4)])
def test_rewriting(model, mode, probes, given):
    asked = Rewriting(mode=mode, **given).config(model, seed=3, batch_size=4)
    found = PurifyConfig.of(mode, seed=3, batch_size=4, **given)
    assert replace(asked, decode=None) == found
    assert found.mask_ratio == found.scoring.mask_ratio == given.get("mask_ratio", 0.06)
    assert found.scoring.saliency.probes == given.get("probes", probes)
    assert (found.seed, found.scoring.saliency.seed) == (3, 3)
    assert (found.batch_size, found.scoring.batch_size) == (4, 4)
    if "score" not in given:
        planned = PlannedRewriting(mode=mode, **given).config()
        assert planned == PurifyConfig.of(mode, **given)


def test_rewriting_as_published(model):
    for given in ({}, {"mask_ratio": 0.45}, {"probes": 2}):
        asked = Rewriting(preset="published", **given).config(model, seed=3, batch_size=4)
        found = PurifyConfig.published(model, seed=3, batch_size=4, **given)
        assert replace(asked, decode=found.decode) == found


@pytest.mark.parametrize(("score", "probes"), [("isotropic", 8), ("directional", 16)])
def test_saliency(score, probes):
    asked = Estimating(score=score).config(seed=1, batch_size=2).saliency
    assert asked == SaliencyConfig.of(score, seed=1) == SaliencyConfig(score=score, probes=probes, seed=1)


def test_auditing():
    assert Auditing().config(0, 32) == AuditConfig.of() == AuditConfig()
    asked = Auditing(mask_ratio=0.3, probes=9).config(2, 8)
    assert asked == AuditConfig.of(mask_ratio=0.3, probes=9, seed=2, batch_size=8)
    assert (asked.scoring.saliency.seed, asked.scoring.batch_size, asked.scoring.saliency.probes) == (2, 8, 9)


def test_a_defence_as_published(tmp_path, monkeypatch):
    asked = []

    class Stopped(Exception):
        pass

    def stop(model, dataset, config, *arguments, **options):
        asked.append(config)
        raise Stopped

    monkeypatch.setattr("disp.defence.defend.defend", stop)
    data = write_rows(tmp_path / "set", [("r0", [wall("red")], ["There is a red apple."])]).path
    with pytest.raises(Stopped):
        command = [
            "defend",
            "builtin",
            str(data),
            "--out",
            str(tmp_path / "out"),
            "--preset",
            "published",
            "--seed",
            "2",
        ]
        app(command, print_error=False, exit_on_error=False)
    found = DefenceConfig.published(seed=2)
    # The command line writes checkpoints, from which a killed training goes on.
    assert replace(asked[0], training=replace(asked[0].training, save_every=0)) == found
    training = found.training  # arXiv 2602.22246: the projector at 1e-4, four passes over the data, 32 rows a step
    assert (training.method, training.learning_rate, training.epochs) == ("projector", 1e-4, 4)
    assert training.batch_size * training.trainer["gradient_accumulation_steps"] == 32
    assert found.rewrites_all and found.audit.seed == training.seed == 2
    assert DefenceConfig.published(rounds=2, training=replace(training, epochs=1)).training.epochs == 1
