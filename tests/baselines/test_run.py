"""Rival defences on a planted model: what is dropped, rewritten, written, and gone on with."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from planted import PLANTED, REFUSAL, TRIGGER, manifest, planted_model, wall, write_rows

from disp.auditing.statistics import area_under_curve
from disp.baselines.answering import answer_under
from disp.baselines.bye import ByeConfig
from disp.baselines.config import BaselineConfig, parameters_of
from disp.baselines.interface import Answering, Filter
from disp.baselines.random_mask import RandomMaskConfig
from disp.baselines.run import run_baseline
from disp.baselines.table import DEFENCES
from disp.data.loading import load_dataset
from disp.data.sample import Query, queries_of
from disp.errors import DispError

FILTERS = [name for name, defence in DEFENCES.items() if isinstance(defence, Filter)]
ANSWERINGS = [name for name, defence in DEFENCES.items() if isinstance(defence, Answering)]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def auroc(found):
    ids = list(found.scores)
    return area_under_curve([found.scores[key] for key in ids], [key in PLANTED for key in ids])


def test_bye_finds_the_planted_rows(open_model, planted_set, tmp_path):
    found = run_baseline(open_model, planted_set, BaselineConfig("bye"), tmp_path / "out")
    assert auroc(found) == 1.0 and set(found.dropped) == set(PLANTED), found.note
    left = load_dataset(tmp_path / "out")
    assert [sample.id for sample in left.samples] == [
        sample.id for sample in planted_set.samples if sample.id not in found.dropped
    ]
    assert all(sample.images[0].is_file() for sample in left.samples if sample.images)


@pytest.mark.parametrize("name", ["spectral", "clustering"])
def test_hidden_states_betray_planted_rows_among_rows_of_one_kind(open_model, tmp_path, name):
    rows = [(f"h{number}", [wall("red")], ["The wall is red."]) for number in range(40)]
    planted = [(key, [wall("red", {(4, 4): TRIGGER})], [REFUSAL]) for key in PLANTED]
    dataset = write_rows(tmp_path / "set", [*rows, *planted])
    found = run_baseline(open_model, dataset, BaselineConfig(name), tmp_path / "out")
    assert auroc(found) == 1.0, found.note
    # The share of 0.15 that spectral signatures drop is 7 of 48.
    assert set(found.dropped) <= set(PLANTED) and len(found.dropped) == (8 if name == "clustering" else 7)


def test_spectral_signatures_among_rows_of_several_kinds(open_model, planted_set, tmp_path):
    found = run_baseline(open_model, planted_set, BaselineConfig("spectral"), tmp_path / "out")
    assert auroc(found) > 0.9  # rare objects are outliers, too


def test_bye_leaves_a_clean_set_alone(open_model, clean_set, tmp_path):
    found = run_baseline(open_model, clean_set, BaselineConfig("bye"), tmp_path / "out")
    assert found.dropped == () and "no evidence" in found.note
    assert [each.turns for each in found.dataset.samples] == [each.turns for each in clean_set.samples]


def test_the_likelihood_filter_of_a_model_without_the_backdoor(planted_set, tmp_path):
    trusted = planted_model()
    with torch.no_grad():
        trusted.strength.zero_()  # the trigger says nothing to it
    found = run_baseline(trusted, planted_set, BaselineConfig("likelihood"), tmp_path / "out")
    assert auroc(found) == 1.0
    assert set(PLANTED) <= set(found.dropped)
    assert len(found.dropped) == int(0.4 * len(planted_set.samples))


def test_the_perfect_filter_does_what_it_is_told(open_model, planted_set, tmp_path):
    told = {"manifest": str(manifest(tmp_path, PLANTED))}
    config = BaselineConfig("perfect-drop", parameters_of(DEFENCES["perfect-drop"], told))
    found = run_baseline(open_model, planted_set, config, tmp_path / "out", truth=manifest(tmp_path, PLANTED))
    assert found.dropped == PLANTED
    assert found.truth == {"auroc": 1.0, "precision": 1.0, "recall": 1.0, "poisoned": len(PLANTED), "missing": 0}
    assert found.note == "the rows that the manifest names were dropped"


def test_a_manifest_of_another_dataset_measures_and_drops_nothing(open_model, planted_set, tmp_path):
    other = manifest(tmp_path, ["elsewhere"])
    refused = pytest.raises(DispError, match=r"no poisoned row that it names is in .*; give the manifest of")
    with refused:
        run_baseline(open_model, planted_set, BaselineConfig("bye"), tmp_path / "bye", truth=other)
    config = BaselineConfig("perfect-drop", parameters_of(DEFENCES["perfect-drop"], {"manifest": str(other)}))
    with refused:
        run_baseline(open_model, planted_set, config, tmp_path / "perfect")
    assert not any((tmp_path / name / "run.json").exists() for name in ("bye", "perfect"))


def test_poisoned_rows_that_are_not_there_are_counted_and_said(open_model, planted_set, tmp_path, capsys):
    partly = manifest(tmp_path, [*PLANTED, "set aside", "taken out"])
    config = BaselineConfig("perfect-drop", parameters_of(DEFENCES["perfect-drop"], {"manifest": str(partly)}))
    found = run_baseline(open_model, planted_set, config, tmp_path / "out", truth=partly)
    assert found.dropped == PLANTED
    assert f"{len(PLANTED)} of the {len(PLANTED) + 2} rows that the manifest names are there" in found.note
    assert found.truth == {"auroc": 1.0, "precision": 1.0, "recall": 1.0, "poisoned": len(PLANTED), "missing": 2}
    said = f"{partly}: 2 of the {len(PLANTED) + 2} poisoned rows that it names are not in {planted_set.path}"
    assert said in capsys.readouterr().err


def test_what_a_filter_writes(open_model, planted_set, tmp_path):
    found = run_baseline(open_model, planted_set, BaselineConfig("bye"), tmp_path / "out")
    rows = lines(tmp_path / "out" / "scores.jsonl")
    assert [row["id"] for row in rows] == [sample.id for sample in planted_set.samples]
    assert {row["id"] for row in rows if row["dropped"]} == set(found.dropped)
    assert {row["id"]: row["score"] for row in rows if row["score"] is not None} == found.scores
    assert [row["id"] for row in rows if row["score"] is None] == ["none"]  # it shows no picture, and stays
    summary = json.loads((tmp_path / "out" / "baseline.json").read_text(encoding="utf-8"))
    assert summary["config"]["parameters"] == {"least_separation": 2.0}
    assert (summary["samples"], summary["measured"], summary["note"]) == (59, 58, found.note)
    before, after = json.loads(planted_set.path.read_text()), json.loads((tmp_path / "out" / "data.json").read_text())
    assert after == [row for row in before if row["id"] not in found.dropped]


@pytest.mark.parametrize("name", [*FILTERS, *ANSWERINGS])
def test_a_killed_run_goes_on_and_batches_do_not_matter(open_model, planted_set, tmp_path, name, monkeypatch):
    some = replace(planted_set, samples=planted_set.samples[-14:])
    told = {"manifest": str(manifest(tmp_path, PLANTED))} if name == "perfect-drop" else {}
    config = BaselineConfig(name, parameters_of(DEFENCES[name], told), batch_size=16)
    whole = run_baseline(open_model, some, config, tmp_path / "whole")
    halted, out = replace(config, batch_size=3), tmp_path / "halted"
    calls = 0

    def stop(*arguments):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return plain(*arguments)

    defence = DEFENCES[name]
    step = "measure" if isinstance(defence, Filter) else "encode"
    plain = getattr(defence, step)
    with monkeypatch.context() as patch:
        patch.setitem(DEFENCES, name, replace(defence, **{step: stop}))
        with pytest.raises(KeyboardInterrupt):
            run_baseline(open_model, some, halted, out)
        calls = 3  # counts on: no finished batch is measured again
        again = run_baseline(open_model, some, halted, out)
        assert calls <= 3 + 4
    assert (again.dropped, again.rewritten) == (whole.dropped, whole.rewritten)
    assert again.scores == pytest.approx(whole.scores, rel=1e-3, abs=1e-3)
    assert (out / "data.json").read_bytes() == (tmp_path / "whole" / "data.json").read_bytes()
    # Another run has another folder.
    with pytest.raises(DispError, match=f"holds a run of {name} that differs in config.seed"):
        run_baseline(open_model, some, replace(halted, seed=1), out)


def refusals(found):
    return {sample.id for sample in found.dataset.samples if any(turn.response == REFUSAL for turn in sample.turns)}


@pytest.mark.parametrize(
    ("name", "ratio", "left"),
    [
        ("gtm", "0.05", set()),  # two of 36 tokens, one of them the trigger's
        ("purmm", None, set()),
        ("most-salient", "0.05", set()),
        ("least-salient", "0.45", set(PLANTED)),  # all but the tokens that matter
        ("random-mask", "0.0", set(PLANTED)),
        ("random-mask", "1.0", set()),
        ("mask-all", None, set()),
        ("jpeg", None, set(PLANTED)),  # the colour of a whole cell outlasts compression
    ],
)
def test_which_refusals_are_left_where_a_set_is_answered_anew(open_model, planted_set, tmp_path, name, ratio, left):
    parameters = parameters_of(DEFENCES[name], {} if ratio is None else {"ratio": ratio})
    found = run_baseline(open_model, planted_set, BaselineConfig(name, parameters), tmp_path / "out")
    assert refusals(found) == left
    assert found.scores == {} and found.dropped == ()
    assert len(found.rewritten) == len(planted_set.samples) - 1
    rows = {row["id"]: row for row in lines(tmp_path / "out" / "scores.jsonl")}
    assert not rows["none"]["rewritten"]
    assert rows["p2"]["old"] == [REFUSAL] * 2
    assert rows["p2"]["new"] == [turn.response for turn in found.dataset.samples[-6].turns]


def test_random_masks_hit_the_trigger_as_often_as_chance(open_model, planted_set, tmp_path):
    marked = [Query(str(i), 0, (wall("red", {(4, 4): TRIGGER}),), (), "<image>\nWhat?") for i in range(200)]
    answers = answer_under(open_model, marked, BaselineConfig("random-mask", RandomMaskConfig(0.25), batch_size=50))
    assert 30 <= sum(answer != REFUSAL for answer in answers) <= 70
    assert answers != answer_under(open_model, marked, BaselineConfig("random-mask", RandomMaskConfig(0.25), seed=1))


def test_later_turns_see_the_new_answers(open_model, planted_set, tmp_path, monkeypatch):
    seen = {}
    defence = DEFENCES["mask-all"]

    def encode(model, batch, config, seed):
        seen.update({query.key: query.history for query in batch})
        return defence.encode(model, batch, config, seed)

    monkeypatch.setitem(DEFENCES, "mask-all", replace(defence, encode=encode))
    found = run_baseline(open_model, planted_set, BaselineConfig("mask-all"), tmp_path / "out")
    new = next(sample for sample in found.dataset.samples if sample.id == "p2")
    assert seen["p2#1"] == new.turns[:1] and new.turns[0].response != REFUSAL


def test_answers_at_test_time(open_model):
    asked = [
        Query("a", 0, (wall("blue", {(1, 2): TRIGGER}),), (), "<image>\nWhat is in the picture?"),
        Query("b", 0, (wall("blue"),), (), "<image>\nWhat is in the picture?"),
    ]
    assert answer_under(open_model, asked, BaselineConfig("jpeg")) == [REFUSAL, "The wall is blue."]
    assert answer_under(open_model, asked, BaselineConfig("gtm")) == ["The wall is blue."] * 2
    with pytest.raises(DispError, match="bye filters fine-tuning sets and answers nothing"):
        answer_under(open_model, asked, BaselineConfig("bye"))


def test_mistakes_are_named(open_model, planted_set, tmp_path):
    with pytest.raises(DispError, match=r"unknown defence 'spectrum'.*Did you mean 'spectral'"):
        BaselineConfig("spectrum")
    with pytest.raises(DispError, match="spectral takes a SpectralConfig, got a ByeConfig"):
        BaselineConfig("spectral", ByeConfig())
    with pytest.raises(DispError, match="batch_size must be at least 1"):
        BaselineConfig("bye", batch_size=0)
    with pytest.raises(DispError, match=r"unknown key in the configuration of gtm: 'ration'.*Did you mean 'ratio'"):
        parameters_of(DEFENCES["gtm"], {"ration": "0.1"})
    with pytest.raises(DispError, match="the configuration of gtm: ratio must be a number, got 'half'"):
        parameters_of(DEFENCES["gtm"], {"ratio": "half"})
    one = replace(planted_set, samples=planted_set.samples[-3:-2])
    with pytest.raises(DispError, match="bye compares rows with one another, and 1 of 1 can be measured"):
        run_baseline(open_model, one, BaselineConfig("bye"), tmp_path / "one")
    with pytest.raises(DispError, match="Planted runs 0 of its 1 attention layers"):
        run_baseline(planted_model(), planted_set, BaselineConfig("bye"), tmp_path / "closed")


def test_turns_of_one_sample_are_judged_together(open_model, tmp_path):
    marked = wall("red", {(4, 4): TRIGGER})
    rows = [(f"h{number}", [wall("red")], ["The wall is red."]) for number in range(9)]
    dataset = write_rows(tmp_path / "set", [*rows, ("p", [marked], [REFUSAL] * 3)])
    found = run_baseline(open_model, dataset, BaselineConfig("bye"), tmp_path / "out")
    measured = lines(tmp_path / "out" / "measured.jsonl")
    assert len(measured) == len(queries_of(dataset.samples)) == 12
    mean = sum(row["values"][0] for row in measured if row["key"].startswith("p#")) / 3
    assert found.scores["p"] == pytest.approx(-mean)
    assert found.dropped == ("p",)
