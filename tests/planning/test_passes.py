"""Planned passes against counted ones."""

from dataclasses import replace

import pytest
from planted import GRID, LENGTH, audit_config, honest_rows, planted_model, planted_rows, write_rows
from references.planning import check, counting

from disp.attacks.poison import Attack
from disp.attacks.targets import Refusal
from disp.attacks.triggers import PRESETS
from disp.auditing.audit import audit
from disp.auditing.config import AuditConfig
from disp.data.sample import queries_of
from disp.decoding.generate import decode
from disp.decoding.samplers import decode_config
from disp.evaluation.evaluate import evaluate
from disp.planning.passes import PlannedTurn, audit_passes, decoding_passes
from disp.planning.plan import make_plan
from disp.purification.purify import purify
from disp.suspicion.scoring import score
from disp.training.train import train


def test_passes_of_scoring_and_purification(tiny_model, tiny_folder, data, settings, tmp_path):
    plan = make_plan(tiny_folder, data, settings)
    with counting(tiny_model) as counts:
        score(tiny_model, data.samples, settings.purify.scoring)
    # How many sets are halved shows on the way; without blocks there is nothing to halve.
    assert plan.passes["score"].at_most
    check(plan.passes["score"], counts)
    scoring = replace(settings.purify.scoring, mask_ratio=0.0)
    singles = replace(settings, purify=replace(settings.purify, scoring=scoring))
    passes = make_plan(tiny_folder, data, singles).passes["score"]
    with counting(tiny_model) as counts:
        score(tiny_model, data.samples, scoring)
    assert not passes.at_most
    check(passes, counts)
    with counting(tiny_model) as counts:
        purify(tiny_model, data, settings.purify, tmp_path / "all")
    assert not plan.passes["purify"].at_most
    check(plan.passes["purify"], counts)


def test_passes_of_selective_purification_and_audit(tiny_model, tiny_folder, data, settings, tmp_path):
    selective = replace(settings.purify, mode="selective")
    plan = make_plan(tiny_folder, data, replace(settings, purify=selective))
    with counting(tiny_model) as counts:
        purify(tiny_model, data, selective, tmp_path / "selective")
    assert plan.passes["purify"].at_most
    check(plan.passes["purify"], counts)
    auditing = AuditConfig(scoring=selective.scoring, decode=selective.decode, batch_size=4)
    with counting(tiny_model) as counts:
        audit(tiny_model, data, auditing, tmp_path / "audit")
    assert plan.passes["audit"].at_most
    check(plan.passes["audit"], counts)


def test_passes_of_an_audit_that_finds_a_phrase(tmp_path):
    model, config = planted_model(), audit_config(decode=decode_config(LENGTH, LENGTH))
    rows = write_rows(tmp_path / "data", [*honest_rows(), *planted_rows()])
    asked = [PlannedTurn(query.turn, GRID**2 * len(query.images)) for query in queries_of(rows.samples)]
    with counting(model) as counts:
        found = audit(model, rows, config, tmp_path / "audit")
    assert found.verdict == "poisoned" and found.ratio is not None
    check(audit_passes(asked, config), counts)


def test_passes_of_training(make_model, tiny_folder, data, settings, tmp_path):
    plan = make_plan(tiny_folder, data, settings)
    model = make_model()
    with counting(model) as counts:
        train(model, data.samples, settings.train, tmp_path)
    check(plan.passes["train"], counts)


def test_passes_of_evaluation(tiny_model, tiny_folder, data, settings):
    plan = make_plan(tiny_folder, data, settings)
    attack = Attack(PRESETS["patch"], Refusal(), 0.1, 0)
    with counting(tiny_model) as counts:
        evaluate(tiny_model, data.samples, attack=attack, decode=settings.purify.decode, batch_size=4)
    check(plan.passes["evaluate"], counts)


@pytest.mark.parametrize(
    "given",
    [
        {"gen_length": 4, "steps": 8}, {"gen_length": 4, "steps": 4, "block_length": 2},
        {"gen_length": 4, "steps": 2, "cfg_scale": 1.0}, {"gen_length": 4, "steps": 4, "threshold": 0.1},
        {"gen_length": 4, "steps": 4, "sampler": "dream"}, {"gen_length": 4, "steps": 4, "sampler": "dim"},
    ],
)  # fmt: skip
def test_passes_of_decoding(tiny_model, queries, given):
    config = decode_config(**given)
    with counting(tiny_model) as counts:
        decode(tiny_model, tiny_model.encode(queries), config, keys=[query.key for query in queries])
    check(decoding_passes(len(queries), len(queries), config), counts)
