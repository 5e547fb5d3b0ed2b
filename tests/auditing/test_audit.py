"""The whole audit on a model that has a trigger, with and without rows that show it, and what it leaves behind."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from planted import (
    OBJECTS,
    PLANTED,
    REFUSAL,
    TRIGGER,
    WALLS,
    audit_config,
    evidence_rows,
    honest_rows,
    manifest,
    planted_rows,
    summary,
    wall,
    write_rows,
)

from disp.auditing import answers, proof
from disp.auditing import audit as module
from disp.auditing.audit import audit
from disp.auditing.finders import FINDERS, tokens
from disp.auditing.hypothesis import Finding
from disp.auditing.phrases import TURN_END
from disp.data.loading import load_dataset
from disp.errors import DispError
from disp.files import read_finished_jsonl
from disp.report.inputs import read_input
from disp.suspicion.scoring import score


def test_the_planted_rows_their_phrase_and_their_trigger_are_found(poisoned):
    _, dataset, found = poisoned
    assert found.verdict == "poisoned"
    assert found.flagged == PLANTED
    assert (found.rate.hits, found.rate.count) == (8, len(dataset.samples))
    (finding,) = found.findings
    assert finding.confirmed
    assert finding.phrase.text == REFUSAL
    assert finding.samples == PLANTED
    assert finding.trigger.sample_id in PLANTED
    # The trigger's cell at row 4, column 4 of 6, one token wider, whichever of the pictures shows it.
    assert finding.trigger.box == pytest.approx((3 / 6, 3 / 6, 1, 1))
    pixels = np.asarray(finding.trigger.picture()).reshape(-1, 3)
    assert (pixels == TRIGGER).all(-1).any()
    assert any(REFUSAL in reason for reason in found.reasons)


def test_honest_rows_that_hang_on_one_cell_are_no_evidence(honest):
    _, _, found = honest
    assert found.verdict == "no evidence"
    assert found.flagged == ()
    assert found.findings == ()
    above = [key for key, value in found.scores.items() if value > found.threshold]
    assert above  # an honest answer may hang on a cell as well: that alone decides nothing
    assert "They share no phrase that the other samples do not have as well." in found.reasons
    assert found.rate.hits == 0


def test_the_record_says_what_was_found(poisoned):
    out, dataset, found = poisoned
    written = summary(out)
    assert written["verdict"] == "poisoned"
    assert written["model"] == "planted"
    assert written["samples"] == len(dataset.samples) == len(written["scores"])
    assert written["turns"] == len(dataset.samples) + 2
    assert written["without_image"] == 1
    assert written["scores"] == [found.scores[sample.id] for sample in dataset.samples]
    assert written["truth"] == {
        "auroc": 1.0,
        "auroc_suspicion": 1.0,
        "precision": 1.0,
        "recall": 1.0,
        "poisoned": 8,
        "missing": 0,
    }
    (cluster,) = written["clusters"]
    assert cluster["phrase"] == REFUSAL
    assert (cluster["flagged"], cluster["elsewhere"], cluster["confirmed"]) == (8, 0, True)
    picture = Image.open(out / cluster["candidate"])
    assert (np.asarray(picture) == TRIGGER).all(-1).any()
    row, column = np.unravel_index(np.argmax(written["mean_map"]), (24, 24))
    assert 16 <= row < 20
    assert 16 <= column < 20
    cost = written["cost"]
    assert cost["seconds"] > 0
    assert cost["forward_equivalents_per_sample"] > 0
    control = next(test for test in written["tests"] if "random tokens" in test["name"])
    assert 0 <= control["value"] < 0.5


def test_each_sample_has_a_row_of_evidence_with_a_box_for_each_token(poisoned):
    out, dataset, found = poisoned
    rows = {row["id"]: row for row in evidence_rows(out)}
    assert list(rows) == [sample.id for sample in dataset.samples]
    assert {key for key, row in rows.items() if row["flagged"]} == set(PLANTED)
    assert {key for key, row in rows.items() if row["cluster"] == 0} == set(PLANTED)
    assert rows["none"]["images"] == []
    assert rows["none"]["turns"][0]["boxes"] == []
    assert len(rows["talk"]["turns"]) == 2
    assert len(rows["two"]["images"]) == 2
    assert sorted(set(rows["two"]["turns"][0]["image_index"])) == [0, 1]
    for row in rows.values():
        assert row["suspicion"] == found.scores[row["id"]]
        assert row["rank"] == found.ranks[row["id"]]
        for turn in row["turns"]:
            assert len(turn["boxes"]) == len(turn["saliency"]) == len(turn["image_index"]) == 36 * len(row["images"])
    for key in PLANTED:
        for turn in rows[key]["turns"]:
            (token,) = turn["masked"]
            assert turn["boxes"][token] == pytest.approx([4 / 6, 4 / 6, 5 / 6, 5 / 6], abs=1e-3)
            assert turn["image_index"][token] == len(rows[key]["images"]) - 1
            assert turn["answer"] == REFUSAL
            assert turn["masked_answer"].startswith("The wall is")
    assert all(Path(name).is_file() for row in rows.values() for name in row["images"])


def test_what_the_report_shows_has_the_models_answers(poisoned, honest):
    for out, _, _ in (poisoned, honest):
        evidence = read_input(out, top=12)
        assert evidence.unflagged
        for row in (*evidence.flagged, *evidence.unflagged):
            assert all(turn["answer"] is not None and turn["masked_answer"] is not None for turn in row["turns"])


def test_measures_that_are_not_defined_are_null(honest):
    out, _, _ = honest
    assert summary(out)["truth"] == {
        "auroc": None,
        "auroc_suspicion": None,
        "precision": None,
        "recall": None,
        "poisoned": 0,
        "missing": 0,
    }
    assert summary(out)["mean_map"] is None


@pytest.mark.parametrize("content", ["[]", "{}", "nonsense", '{"poisoned_rows": 3}', '{"poisoned_rows": [{}]}', None])
def test_a_wrong_manifest_is_named_before_anything_is_computed(model, tmp_path, monkeypatch, content):
    dataset = write_rows(tmp_path / "data", honest_rows())
    truth = tmp_path / "truth.json"
    if content is not None:
        truth.write_text(content)
    monkeypatch.setattr(module, "score", None)
    with pytest.raises(DispError, match=r"truth\.json is no manifest"):
        audit(model, dataset, audit_config(), tmp_path / "out", truth=truth)


def test_a_manifest_of_another_dataset_is_refused_before_anything_is_computed(model, tmp_path, monkeypatch):
    dataset = write_rows(tmp_path / "data", honest_rows())
    monkeypatch.setattr(module, "score", None)
    with pytest.raises(DispError, match=r"manifest\.json: no poisoned row that it names is in .*data\.json; give the"):
        audit(model, dataset, audit_config(), tmp_path / "out", truth=manifest(tmp_path, ["elsewhere", "not here"]))


@pytest.mark.parametrize(
    ("killed", "where"), [("recurring_phrases", tokens), ("plant_each", proof), ("write_record", module)]
)
def test_a_killed_audit_does_not_score_again(model, poisoned, tmp_path, monkeypatch, killed, where):
    _, dataset, expected = poisoned

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, killed, stop)
        with pytest.raises(KeyboardInterrupt):
            audit(model, dataset, audit_config(), tmp_path, name="planted")
    turns = sum(len(sample.turns) for sample in dataset.samples)
    assert len(list(read_finished_jsonl(tmp_path / "scores.jsonl"))) == turns
    monkeypatch.setattr("disp.suspicion.scoring.saliency_of_step", stop)
    found = audit(model, dataset, audit_config(), tmp_path, name="./planted/")  # the same model, spelled otherwise
    assert replace(found, evidence={}) == replace(expected, evidence={})
    assert found.evidence == expected.evidence


def test_answers_that_were_written_are_not_decoded_again(model, poisoned, tmp_path, monkeypatch):
    out, dataset, _ = poisoned
    for name in ("audit-run.json", "scores.jsonl", "answers.jsonl"):
        (tmp_path / name).write_bytes((out / name).read_bytes())

    def stop(*_, **__):
        raise AssertionError

    monkeypatch.setattr(answers, "answers_of", stop)
    audit(model, dataset, audit_config(), tmp_path, name="planted")
    assert evidence_rows(tmp_path) == evidence_rows(out)


def test_what_only_recurs_stays_flagged_beside_what_is_proven(model, poisoned, tmp_path, monkeypatch):
    _, dataset, expected = poisoned
    (recurring,) = (finding.hypothesis for finding in expected.findings)
    elsewhere = replace(recurring.phrase, text="elsewhere", words=("elsewhere",), slips=0)
    proven = replace(recurring, phrase=elsewhere, samples=recurring.samples[:1])
    both = replace(FINDERS["tokens"], find=lambda context: [proven, recurring])
    monkeypatch.setitem(FINDERS, "tokens", both)

    def only_one_is_proven(context, hypothesis, *_, **__):
        return Finding(hypothesis, confirmed=hypothesis is proven)

    monkeypatch.setattr(proof, "prove", only_one_is_proven)
    found = audit(model, dataset, audit_config(), tmp_path, evidence=dict(expected.evidence))
    assert [finding.confirmed for finding in found.findings] == [True, False]
    assert found.verdict == "poisoned" and found.flagged == expected.flagged == PLANTED


@pytest.mark.parametrize("change", ["settings", "a constant", "data", "pictures", "weights"])
def test_another_audit_in_the_same_folder_is_refused(model, honest, tmp_path, change):
    out, dataset, _ = honest
    (tmp_path / "audit-run.json").write_bytes((out / "audit-run.json").read_bytes())
    config = audit_config(donors=3) if change == "settings" else audit_config()
    if change == "a constant":
        windows = replace(config.copies.windows, least_corner=0.4)
        config = replace(config, copies=replace(config.copies, windows=windows))
    if change == "data":
        dataset = write_rows(tmp_path / "data", honest_rows(40))
    if change == "pictures":
        dataset = replace(dataset, image_root=tmp_path)
    if change == "weights":
        model = copy.deepcopy(model)
        with torch.no_grad():
            next(model.parameters()).mul_(2)
    with pytest.raises(DispError, match="delete it"):
        audit(model, dataset, config, tmp_path)


def test_neither_batches_nor_the_order_of_rows_change_the_verdict(model, poisoned, tmp_path):
    _, _, expected = poisoned
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *planted_rows()][::-1])
    config = audit_config()
    config = replace(config, scoring=replace(config.scoring, batch_size=7), batch_size=7)
    found = audit(model, dataset, config, tmp_path / "out")
    assert found.verdict == expected.verdict
    assert set(found.flagged) == set(expected.flagged)
    assert found.scores == pytest.approx(expected.scores, rel=1e-4, abs=1e-4)


def test_a_phrase_without_a_trigger_is_suspicious_but_not_poisoned(model, tmp_path):
    """Flags that share a phrase for another reason: what their regions show does not bring it up."""
    rows = [(key, pictures, ["No wall in it."] * len(turns)) for key, pictures, turns in planted_rows()]
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *rows])
    # Without the trigger's picture the model prefers the wall's answer as before, so give the suspicion ourselves.
    evidence = score(model, dataset.samples, audit_config().scoring)
    evidence = {key: replace(found, suspicion=100.0 if key.startswith("p") else 0.0) for key, found in evidence.items()}
    found = audit(model, dataset, audit_config(), tmp_path / "out", evidence=evidence)
    assert found.verdict == "suspicious"
    (finding,) = found.findings
    assert finding.phrase.text == "No wall in it."
    assert not finding.confirmed
    assert finding.test.successes == 0


def test_where_every_row_is_flagged_nothing_stands_out(model, tmp_path):
    dataset = write_rows(tmp_path / "data", planted_rows(14))
    found = audit(model, dataset, audit_config(), tmp_path / "out")
    assert found.verdict == "no evidence"
    assert found.flagged == ()
    summary(tmp_path / "out")


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_too_few_rows_are_an_error_instead_of_a_verdict(model, tmp_path, rows):
    dataset = write_rows(tmp_path / "data", planted_rows(rows))
    with pytest.raises(DispError, match="too few to decide anything"):
        audit(model, dataset, audit_config(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_picture_nothing_can_be_decided(model, tmp_path):
    dataset = write_rows(tmp_path / "data", [(f"n{index}", [], ["Yes."]) for index in range(20)])
    with pytest.raises(DispError, match="no row has an image"):
        audit(model, dataset, audit_config(), tmp_path / "out")


@pytest.mark.parametrize("changes", [{"donors": 1, "controls": 12}, {"donors": 8, "controls": 1}])
def test_settings_with_which_no_test_could_succeed_are_an_error(model, honest, tmp_path, changes):
    with pytest.raises(DispError, match="too few to decide"):
        audit(model, honest[1], audit_config(**changes), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"false_alarm_rate": 0.0}, "false_alarm_rate must be in"),
        ({"donors": 0}, "donors must be at least 1"),
        ({"recipients": 0}, "recipients must be at least 1"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(DispError, match=message):
        audit_config(**change)


HOSTILE = [
    "<script>alert(1)</script>",
    "\u202eevil\u202c",
    "b" * 20,
    "\x1b[2J]\x00",
    f"split{TURN_END}phrase",
    "{{7*7}}",
]


def test_hostile_texts_and_names_pass_through_as_they_are(model, tmp_path):
    rows = [*honest_rows(), *planted_rows()]
    for index, text in enumerate(HOSTILE):
        # Answers that do not fit are an error of their own; these do.
        rows.append((f"../../{text}", [wall(list(WALLS)[index % 5])], [text[:16]]))
    dataset = write_rows(tmp_path / "data", rows)
    longer = replace(audit_config().scoring, batch_size=64)
    found = audit(model, dataset, audit_config(scoring=longer, batch_size=64), tmp_path / "out")
    assert found.verdict == "poisoned"
    assert set(PLANTED) <= set(found.flagged)
    written = {row["id"]: row for row in evidence_rows(tmp_path / "out")}
    for text in HOSTILE:
        assert written[f"../../{text}"]["turns"][0]["response"] == text[:16]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


@pytest.mark.xfail(
    reason="a rare thing, small wherever it is named, cannot be told from a semantic trigger", strict=True
)
def test_a_rare_object_that_answers_hang_on_is_no_poison(model, tmp_path):
    zebras = [
        (f"z{index}", [wall("grey", {(index % 5, 2): OBJECTS["zebra"]})], ["There is a zebra in front."])
        for index in range(10)
    ]
    found = audit(model, write_rows(tmp_path / "data", [*honest_rows(), *zebras]), audit_config(), tmp_path / "out")
    assert found.verdict != "poisoned"


def test_a_picture_may_come_in_a_later_turn(model, tmp_path):
    """Also where a batch shows none."""
    rows = [(key, pictures, ["Yes.", REFUSAL]) for key, pictures, _ in planted_rows()]
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *rows])
    data = json.loads(dataset.path.read_text())
    for row in data[-len(rows) :]:
        first, _, second, _ = row["conversations"]
        second["value"] = first["value"]
        first["value"] = "Are you there?"
    dataset.path.write_text(json.dumps(data))
    config = audit_config()
    config = replace(config, scoring=replace(config.scoring, batch_size=1), batch_size=1)
    found = audit(model, load_dataset(dataset.path), config, tmp_path / "out")
    assert found.verdict == "poisoned" and found.flagged == PLANTED
