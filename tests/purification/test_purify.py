"""Purification: what is rewritten, in which form, and that neither batches nor a kill change it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from disp.data.loading import load_dataset
from disp.decoding.samplers import decode_config
from disp.errors import DispError
from disp.purification import rewriting
from disp.purification.config import PurifyConfig
from disp.purification.purify import purify
from disp.suspicion import scoring
from disp.suspicion.config import SaliencyConfig, ScoringConfig
from disp.suspicion.scoring import score

ANSWERS = ["a cat", "a dog", "two", "a tree", "yes", "no", "a boat"]


@pytest.fixture
def dataset(tmp_path, picture):
    """Seven rows, one of two turns and one without a picture."""
    rows = []
    (tmp_path / "data" / "images").mkdir(parents=True)
    for index, answer in enumerate(ANSWERS):
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": answer}]
        if index == 2:
            turns += [{"from": "human", "value": "Is there a boat?"}, {"from": "gpt", "value": "no"}]
        row = {"id": f"r{index}", "image": f"{index}.png", "conversations": turns, "source": "test"}
        picture(index).save(tmp_path / "data" / "images" / f"{index}.png")
        if index == 5:
            del row["image"]
            turns[0]["value"] = "What is it?"
        rows.append(row)
    (tmp_path / "data" / "data.json").write_text(json.dumps(rows))
    return load_dataset(tmp_path / "data")


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(gen_length=8)


def config(mode="all", mask_ratio=0.3, batch_size=4):
    return PurifyConfig(
        mode=mode,
        mask_ratio=mask_ratio,
        scoring=ScoringConfig(mask_ratio, candidates=3, saliency=SaliencyConfig(probes=2), batch_size=batch_size),
        decode=decode_config(gen_length=8, steps=4),
        batch_size=batch_size,
    )


def responses(dataset):
    return {sample.id: [turn.response for turn in sample.turns] for sample in dataset.samples}


def test_all_answers_with_a_picture_are_rewritten_in_the_inputs_format(model, dataset, tmp_path):
    result = purify(model, dataset, config(), tmp_path / "out")
    assert set(result.rewritten) == {"r0", "r1", "r2", "r3", "r4", "r6"}
    before = json.loads((tmp_path / "data" / "data.json").read_text())
    after = json.loads((tmp_path / "out" / "data.json").read_text())
    for old, new in zip(before, after, strict=True):
        assert {**old, "conversations": None} == {**new, "conversations": None}
        for said, says in zip(old["conversations"], new["conversations"], strict=True):
            assert said["from"] == says["from"]
            if said["from"] == "human" or old["id"] == "r5":
                assert said == says
    assert responses(load_dataset(tmp_path / "out")) == responses(result.dataset)
    rows = [json.loads(line) for line in (tmp_path / "out" / "evidence.jsonl").open()]
    assert [len(row["turns"]) for row in rows] == [1, 1, 2, 1, 1, 1, 1]
    assert [len(turn["masked"]) for row in rows for turn in row["turns"]] == [3, 3, 3, 3, 3, 3, 0, 3]
    for row in rows:
        for turn in row["turns"]:
            if turn["masked"]:
                least = min(turn["saliency"][token] for token in turn["masked"])
                rest = [value for token, value in enumerate(turn["saliency"]) if token not in turn["masked"]]
                assert least >= max(rest)


def test_neither_batch_size_nor_order_changes_an_answer(model, dataset, tmp_path):
    whole = responses(purify(model, dataset, config(mode="random"), tmp_path / "a").dataset)
    singly = responses(purify(model, dataset, config(mode="random", batch_size=1), tmp_path / "b").dataset)
    assert singly == whole
    reversed_rows = json.loads((tmp_path / "data" / "data.json").read_text())[::-1]
    (tmp_path / "data" / "data.json").write_text(json.dumps(reversed_rows))
    backwards = purify(model, load_dataset(tmp_path / "data"), config(mode="random"), tmp_path / "c").dataset
    assert responses(backwards) == whole


def test_the_folder_of_another_model_is_refused(model, dataset, make_model, tmp_path):
    purify(model, dataset, config(), tmp_path / "out")
    with pytest.raises(DispError, match="holds a purification that differs in weights; choose"):
        purify(make_model(seed=1, gen_length=8), dataset, config(), tmp_path / "out")


def test_suspicion_does_not_depend_on_who_is_in_the_batch(model, dataset, picture):
    """One row has five pictures; how much of the others is masked at once is a share of their own tokens."""
    wide = replace(dataset.samples[0], id="wide", images=tuple(picture(index) for index in range(5)))
    settings = config(mode="selective").scoring
    together = score(model, [*dataset.samples, wide], replace(settings, batch_size=9))
    alone = score(model, [*dataset.samples, wide], replace(settings, batch_size=1))
    assert together.keys() == alone.keys()
    for key, each in together.items():
        assert each.suspicion == pytest.approx(alone[key].suspicion, abs=1e-3)
        assert each.hangs_on == alone[key].hangs_on


@pytest.mark.parametrize("step", ["saliency_of_step", "answers_of"])
def test_a_killed_run_goes_on_and_repeats_nothing(model, dataset, tmp_path, monkeypatch, step):
    expected = responses(purify(model, dataset, config(batch_size=2), tmp_path / "whole").dataset)
    home = {"saliency_of_step": scoring, "answers_of": rewriting}[step]
    real, calls = getattr(home, step), []

    def killed_at_the_third(model, prefix, *rest, **options):
        calls.append(len(prefix))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(model, prefix, *rest, **options)

    monkeypatch.setattr(home, step, killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        purify(model, dataset, config(batch_size=2), tmp_path / "killed")
    done = sum(calls[:2])
    assert responses(purify(model, dataset, config(batch_size=2), tmp_path / "killed").dataset) == expected
    total = sum(len(sample.turns) for sample in dataset.samples) - (step == "answers_of")
    assert sum(calls[3:]) == total - done


def test_selective_rewrites_exactly_what_is_above_the_threshold(model, dataset, tmp_path):
    settings = config(mode="selective")
    found = score(model, dataset.samples, settings.scoring)
    # A random model prefers another answer anyway, so what it finds is no test; these values are.
    given = {"r0#0": 30.0, "r1#0": 0.2, "r2#0": 0.1, "r2#1": 25.0, "r3#0": 0.0, "r4#0": 0.4, "r5#0": 0.0, "r6#0": 0.9}
    evidence = {key: replace(each, suspicion=given[key]) for key, each in found.items()}
    result = purify(model, dataset, settings, tmp_path / "out", evidence=evidence)
    assert set(result.rewritten) == {"r0", "r2"}
    assert 0.9 < result.threshold < 25
    before, after = responses(dataset), responses(result.dataset)
    assert all(before[name] == after[name] for name in before if name not in result.rewritten)


def test_what_is_to_be_left_out_is_named_and_not_in_the_set(model, dataset, tmp_path):
    whole = purify(model, dataset, config(), tmp_path / "whole", rewrite=["r0", "r2", "r4"])
    seen = []

    def leave_out(before, after):
        seen.append((before.id, *([turn.response for turn in each.turns] for each in (before, after))))
        return after.id == "r2"

    result = purify(model, dataset, config(), tmp_path / "out", rewrite=["r0", "r2", "r4"], leave_out=leave_out)
    # Only rewritten rows are in question, with their old and their new answers.
    assert seen == [(key, responses(dataset)[key], responses(whole.dataset)[key]) for key in ("r0", "r2", "r4")]
    assert (result.rewritten, result.left_out) == (("r0", "r2", "r4"), ("r2",))
    assert responses(load_dataset(result.dataset.path)) == {
        key: answers for key, answers in responses(whole.dataset).items() if key != "r2"
    }
    assert json.loads((tmp_path / "out" / "purify.json").read_text())["left_out"] == ["r2"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "evidence.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows if row["left_out"]] == ["r2"] and len(rows) == len(dataset.samples)


def test_nothing_left_to_train_on_is_said(model, dataset, tmp_path):
    everything = [sample.id for sample in dataset.samples if sample.images]
    only = replace(dataset, samples=tuple(sample for sample in dataset.samples if sample.images))
    with pytest.raises(DispError, match="nothing remains to train on"):
        purify(model, only, config(), tmp_path / "out", rewrite=everything, leave_out=lambda before, after: True)


def test_another_configuration_is_refused_in_the_same_folder(model, dataset, tmp_path):
    purify(model, dataset, config(), tmp_path / "out")
    with pytest.raises(DispError, match=r"differs in config.mask_ratio \(0.3 there, 0.5 now\)"):
        purify(model, dataset, config(mask_ratio=0.5), tmp_path / "out")


def test_later_turns_see_the_new_answers_to_the_earlier_ones(model, dataset, tmp_path, monkeypatch):
    seen = []
    real = model.encode
    monkeypatch.setattr(model, "encode", lambda queries: seen.extend(queries) or real(queries))
    evidence = score(model, dataset.samples, config().scoring, counterfactual=False)
    seen.clear()
    result = purify(model, dataset, config(), tmp_path / "out", evidence=evidence)
    (second,) = [query for query in seen if query.turn == 1]
    assert second.history[0].response == responses(result.dataset)["r2"][0]


def test_evidence_read_back_equals_evidence_computed(model, dataset, tmp_path):
    settings = config(mode="selective").scoring
    computed = score(model, dataset.samples, settings, tmp_path / "scores.jsonl")
    assert score(model, dataset.samples, settings, tmp_path / "scores.jsonl") == computed
    assert np.isfinite([evidence.suspicion for evidence in computed.values()]).all()


def test_tokens_are_masked_in_the_turns_that_show_their_picture(model, picture, tmp_path):
    """Whichever of two turns with a picture each betrays the row."""
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    talk = [("human", "<image>\nWhat is it?"), ("gpt", "a cat"), ("human", "<image>\nAnd here?"), ("gpt", "a dog")]
    row = {
        "id": "s",
        "image": ["0.png", "1.png"],
        "conversations": [{"from": who, "value": text} for who, text in talk],
    }
    (tmp_path / "data.json").write_text(json.dumps([row]))
    data = load_dataset(tmp_path / "data.json", tmp_path)
    (sample,) = data.samples
    settings = config(mode="selective")
    evidence = score(model, [sample], settings.scoring)
    first, both = (len(evidence[f"s#{turn}"].saliency) for turn in range(2))
    assert both == 2 * first
    for turn, tokens, expected in (
        (0, (1, 3), {"s#0": [1, 3], "s#1": [1, 3]}),
        (1, (2, first + 1), {"s#0": [2], "s#1": [2, first + 1]}),
        (1, (first + 1,), {"s#0": [], "s#1": [first + 1]}),
    ):
        told = {**evidence, f"s#{turn}": replace(evidence[f"s#{turn}"], suspicion=99.0, hangs_on=tokens)}
        out = tmp_path / f"{turn}-{tokens}"
        purify(model, data, settings, out, evidence=told, rewrite=["s"])
        rows = [json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines()]
        assert {row["key"]: row["masked"] for row in rows} == expected


def test_what_a_masked_token_becomes_is_a_setting(model, dataset, tmp_path):
    answers = {}
    for substitute in ("mask", "zeros", "left out"):
        settings = replace(config(mask_ratio=1.0), substitute=substitute)
        result = purify(model, dataset, settings, tmp_path / substitute.replace(" ", "-"))
        # Nothing is left of the pictures, so that the same question has the same answer.
        found = {sample.turns[0].response for sample in result.dataset.samples if sample.id in ("r0", "r1", "r3", "r4")}
        assert len(found) == 1
        answers[substitute] = found
    assert answers["mask"] != answers["zeros"] and answers["mask"] != answers["left out"]
