"""The whole audit on a model that has a trigger, with and without rows that show it, and what it leaves behind."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from disp import cli
from disp.auditing import audit as module
from disp.auditing import growth, record
from disp.auditing.audit import audit
from disp.auditing.findings import Cluster
from disp.auditing.phrases import TURN_END, Phrase, repeated_phrases, words_of
from disp.auditing.ratio import RATIOS, choose_mask_ratio
from disp.auditing.repeated import WIDE_RATIO, _windows, vanishing_phrases
from disp.data.sample import Sample, Turn, queries_of
from disp.data.scene_dataset import write_scenes
from disp.errors import DispError
from disp.files import read_finished_jsonl
from disp.models.boxes import raster_boxes
from disp.purification.purify import Evidence, most_suspicious
from disp.purification.support import counterfactual_scores, narrowed
from disp.purification.threshold import suspicion_threshold

sys.path.insert(0, str(Path(__file__).parent))
from planted import (
    CELL,
    OBJECTS,
    REFUSAL,
    TRIGGER,
    WALLS,
    audit_config,
    honest_rows,
    planted_model,
    planted_rows,
    wall,
    write_rows,
)

PLANTED = tuple(f"p{index}" for index in range(8))


@pytest.fixture(scope="module")
def model():
    return planted_model()


def manifest(folder, ids):
    path = folder / "manifest.json"
    path.write_text(json.dumps({"poisoned_rows": [{"id": key} for key in ids]}))
    return path


@pytest.fixture(scope="module")
def poisoned(model, tmp_path_factory):
    """An audit of 51 honest and 8 poisoned rows: its folder, the dataset and the result."""
    folder = tmp_path_factory.mktemp("poisoned")
    dataset = write_rows(folder / "data", [*honest_rows(), *planted_rows()])
    truth = manifest(folder, PLANTED)
    return folder / "out", dataset, audit(model, dataset, audit_config(), folder / "out", truth=truth, name="planted")


@pytest.fixture(scope="module")
def honest(model, tmp_path_factory):
    """The same model on honest rows alone."""
    folder = tmp_path_factory.mktemp("honest")
    dataset = write_rows(folder / "data", honest_rows())
    return folder / "out", dataset, audit(model, dataset, audit_config(), folder / "out", truth=manifest(folder, ()))


def strict(path):
    """JSON as every reader takes it: without NaN and Infinity."""

    def refuse(name):
        raise AssertionError(f"{path} holds {name}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def summary(folder):
    def refuse(name):
        raise AssertionError(name)

    return json.loads((folder / "audit.json").read_text(), parse_constant=refuse)


def test_the_planted_rows_their_phrase_and_their_trigger_are_found(poisoned):
    _, dataset, found = poisoned
    assert found.verdict == "poisoned"
    assert found.flagged == PLANTED
    assert (found.rate.hits, found.rate.count) == (8, len(dataset.samples))
    (cluster,) = found.clusters
    assert cluster.confirmed
    assert cluster.phrase.text == REFUSAL
    assert cluster.samples == PLANTED
    assert cluster.trigger.sample_id in PLANTED
    # The trigger's cell at row 4, column 4 of 6, one token wider, whichever of the pictures shows it.
    assert cluster.trigger.box == pytest.approx((3 / 6, 3 / 6, 1, 1))
    pixels = np.asarray(cluster.trigger.crop()).reshape(-1, 3)
    assert (pixels == TRIGGER).all(-1).any()
    assert any(REFUSAL in reason for reason in found.reasons)


def test_honest_rows_that_hang_on_one_cell_are_no_evidence(honest):
    _, _, found = honest
    assert found.verdict == "no evidence"
    assert found.flagged == ()
    assert found.clusters == ()
    above = [key for key, value in found.scores.items() if value > found.threshold]
    assert above  # an honest answer may hang on a cell as well: that alone decides nothing
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
    assert written["truth"] == {"auroc": 1.0, "precision": 1.0, "recall": 1.0, "poisoned": 8}
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
    control = next(test for test in written["tests"] if test["name"].startswith("flagged samples that random"))
    assert 0 <= control["value"] < 0.5


def test_each_sample_has_a_row_of_evidence_with_a_box_for_each_token(poisoned):
    out, dataset, found = poisoned
    rows = {row["id"]: row for row in strict(out / "evidence.jsonl")}
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


def test_measures_that_are_not_defined_are_null(honest):
    out, _, _ = honest
    assert summary(out)["truth"] == {"auroc": None, "precision": None, "recall": None, "poisoned": 0}
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


@pytest.mark.parametrize("killed", ["recurring_phrases", "paste_test", "write_record"])
def test_a_killed_audit_does_not_score_again(model, poisoned, tmp_path, monkeypatch, killed):
    _, dataset, expected = poisoned
    asked = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda queries: asked.extend(q.key for q in queries) or encode(queries))

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, killed, stop)
        with pytest.raises(KeyboardInterrupt):
            audit(model, dataset, audit_config(), tmp_path, name="planted")
    turns = sum(len(sample.turns) for sample in dataset.samples)
    assert len(list(read_finished_jsonl(tmp_path / "scores.jsonl"))) == turns
    monkeypatch.setattr("disp.purification.purify.saliency", stop)
    found = audit(model, dataset, audit_config(), tmp_path, name="planted")
    assert replace(found, evidence={}) == replace(expected, evidence={})
    assert found.evidence == expected.evidence


def test_answers_that_were_written_are_not_decoded_again(model, poisoned, tmp_path, monkeypatch):
    out, dataset, _ = poisoned
    for name in ("audit-run.json", "scores.jsonl", "answers.jsonl"):
        (tmp_path / name).write_bytes((out / name).read_bytes())

    def stop(*_, **__):
        raise AssertionError

    monkeypatch.setattr(record, "answers_of", stop)
    audit(model, dataset, audit_config(), tmp_path, name="planted")
    assert strict(tmp_path / "evidence.jsonl") == strict(out / "evidence.jsonl")


def test_what_only_recurs_stays_flagged_beside_what_is_proven(model, poisoned, tmp_path, monkeypatch):
    _, dataset, expected = poisoned
    (recurring,) = (cluster.phrase for cluster in expected.clusters)
    proven = replace(recurring, words=("elsewhere",), text="elsewhere", flagged=recurring.flagged[:1])
    monkeypatch.setattr(module, "recurring_phrases", lambda *_, **__: [proven, recurring])

    def only_one_is_proven(model, phrase, members, *_):
        return Cluster(phrase, tuple(sample.id for sample in members), None, phrase is proven, (), None)

    monkeypatch.setattr(module, "_cluster", only_one_is_proven)
    found = audit(model, dataset, audit_config(), tmp_path, evidence=dict(expected.evidence))
    assert [cluster.confirmed for cluster in found.clusters] == [True, False]
    assert found.verdict == "poisoned" and found.flagged == expected.flagged == PLANTED


@pytest.mark.parametrize("change", ["settings", "data", "model"])
def test_another_audit_in_the_same_folder_is_refused(model, honest, tmp_path, change):
    out, dataset, _ = honest
    (tmp_path / "audit-run.json").write_bytes((out / "audit-run.json").read_bytes())
    config = audit_config(donors=3) if change == "settings" else audit_config()
    if change == "data":
        dataset = write_rows(tmp_path / "data", honest_rows(40))
    with pytest.raises(DispError, match="delete it"):
        audit(model, dataset, config, tmp_path, name="another" if change == "model" else "")


def test_neither_batches_nor_the_order_of_rows_change_the_verdict(model, poisoned, tmp_path):
    _, _, expected = poisoned
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *planted_rows()][::-1])
    config = audit_config()
    config = replace(config, scoring=replace(config.scoring, batch_size=7))
    found = audit(model, dataset, config, tmp_path / "out")
    assert found.verdict == expected.verdict
    assert set(found.flagged) == set(expected.flagged)
    assert found.scores == pytest.approx(expected.scores, rel=1e-4, abs=1e-4)


def test_a_phrase_without_a_trigger_is_suspicious_but_not_poisoned(model, tmp_path):
    """Flags that share a phrase for another reason: what their regions show does not bring it up."""
    rows = [(key, pictures, ["No wall in it."] * len(turns)) for key, pictures, turns in planted_rows()]
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *rows])
    # Without the trigger's picture the model prefers the wall's answer as before, so give the suspicion ourselves.
    evidence = module.score(model, dataset.samples, audit_config().scoring)
    evidence = {key: replace(found, suspicion=100.0 if key.startswith("p") else 0.0) for key, found in evidence.items()}
    found = audit(model, dataset, audit_config(), tmp_path / "out", evidence=evidence)
    assert found.verdict == "suspicious"
    (cluster,) = found.clusters
    assert cluster.phrase.text == "No wall in it."
    assert not cluster.confirmed
    assert cluster.paste.successes == 0


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
    found = audit(model, dataset, audit_config(scoring=longer), tmp_path / "out")
    assert found.verdict == "poisoned"
    assert set(PLANTED) <= set(found.flagged)
    written = {row["id"]: row for row in strict(tmp_path / "out" / "evidence.jsonl")}
    for text in HOSTILE:
        assert written[f"../../{text}"]["turns"][0]["response"] == text[:16]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def sample(key, *answers):
    return Sample(key, (wall("red"),), tuple(Turn("<image>?", answer) for answer in answers))


def evidence_of(sample, *suspicion):
    keys = [f"{sample.id}#{turn}" for turn in range(len(sample.turns))]
    return {
        key: Evidence(key, (1.0,), ((0, 0, 0, 0),), value, (0,)) for key, value in zip(keys, suspicion, strict=True)
    }


def test_a_conversation_is_judged_by_the_turn_that_betrays_it():
    talk = sample("s", "A cat.", REFUSAL, "A dog.")
    evidence = evidence_of(talk, 1.0, 9.0, None)
    assert most_suspicious(talk, evidence).key == "s#1"
    assert module._answers(talk, evidence) == REFUSAL
    assert module._answers(talk, None).split(f" {TURN_END} ") == ["A cat.", REFUSAL, "A dog."]


def test_regions_are_pasted_where_what_they_misname_is():
    """A trigger that makes the model call a cat a fish does nothing in a picture without a cat."""
    others = [sample("a", "A dog."), sample("b", "Red.", "A cat."), sample("c", "A dog, a cat."), sample("d", "Blue.")]
    assert [query.key for query in module._recipients(others, {"cat"})] == ["b#1", "c#0", "a#0", "d#0"]
    assert [query.key for query in module._recipients(others, set())] == ["a#0", "b#0", "c#0", "d#0"]


def test_what_the_model_says_instead_of_a_planted_answer_is_found(model, poisoned):
    _, dataset, found = poisoned
    donors = [sample for sample in dataset.samples if sample.id in PLANTED]
    answers = module._masked_answers(model, donors, found.evidence, audit_config())
    assert [given for given, _ in answers] == [REFUSAL] * len(PLANTED)
    assert all(answer.startswith("The wall is ") for _, answer in answers)
    # Not the walls' colours, which differ, nor words that say nothing.
    assert module._said_instead(answers) == {"wall"}
    assert found.clusters[0].instead == ("wall",)


def test_a_phrase_that_masking_leaves_in_place_is_no_evidence(model, tmp_path):
    """Flagged answers share it, but it is not what their regions make the model say."""
    dataset = write_rows(tmp_path / "data", honest_rows())
    evidence = module.score(model, dataset.samples, audit_config().scoring)
    reds = {f"{sample.id}#0" for sample in dataset.samples if sample.turns[0].response == "The wall is red."}
    evidence = {key: replace(found, suspicion=100.0 if key in reds else 0.0) for key, found in evidence.items()}
    found = audit(model, dataset, audit_config(), tmp_path / "out", evidence=evidence)
    assert sum(value > found.threshold for value in found.scores.values()) >= 8
    assert found.clusters == ()
    assert found.verdict == "no evidence"


@pytest.mark.parametrize(
    ("flagged", "elsewhere", "p_value", "expected"),
    [(8, 0, 1e-9, True), (8, 4, 1e-9, True), (8, 5, 1e-9, False), (8, 0, 0.02, False)],
)
def test_without_proof_nearly_all_who_say_a_phrase_must_be_flagged(flagged, elsewhere, p_value, expected):
    phrase = Phrase("a guitar", ("guitar",), tuple(range(flagged)), elsewhere, p_value)
    assert module._beyond_doubt(phrase, audit_config()) is expected


def test_regions_are_taken_from_the_half_that_is_smaller(model):
    """A large region may show the thing that is spoken of, and no trigger."""
    samples = [sample(f"s{index}", REFUSAL) for index in range(8)]
    places = tuple((0, 0, row, column) for row in range(6) for column in range(6))
    evidence = {
        f"{each.id}#0": Evidence(
            f"{each.id}#0", (1.0,) * 36, places, float(index), (0, 1, 2, 6, 7, 8) if index % 2 else (0,)
        )
        for index, each in enumerate(samples)
    }
    assert [each.id for each in module._donors(model, samples, evidence, 3)] == ["s6", "s4", "s2"]
    # So few that all are needed.
    assert [each.id for each in module._donors(model, samples[4:], evidence, 4)] == ["s7", "s6", "s5", "s4"]


def wide_rows(count=4):
    """Two triggers apart, so that no candidate masks both."""
    cells = {(4, 4): TRIGGER, (1, 1): TRIGGER}
    return [(f"w{index}", [wall(name, cells)], [REFUSAL]) for index, name in zip(range(count), WALLS, strict=False)]


def test_others_who_say_a_proven_phrase_are_found_under_larger_masks(model, tmp_path):
    liars = [(f"l{index}", [wall("red")], [REFUSAL]) for index in range(2)]  # no trigger in their pictures
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *planted_rows(), *wide_rows(), *liars])
    evidence = module.score(model, dataset.samples, audit_config().scoring)
    for key in ("w0#0", "w1#0", "w2#0", "w3#0"):  # as if no candidate had held both
        saliency = tuple(float(cell in (7, 28)) for cell in range(36))
        evidence[key] = replace(evidence[key], saliency=saliency, suspicion=0.0, best_candidate=())
    found = audit(model, dataset, audit_config(), tmp_path / "out", evidence=evidence)
    (cluster,) = found.clusters
    assert cluster.samples == PLANTED
    assert cluster.more == ("w0", "w1", "w2", "w3")
    assert found.flagged == (*PLANTED, *cluster.more)
    for key in cluster.more:
        evidence = found.evidence[f"{key}#0"]
        assert {7, 28} <= set(evidence.best_candidate)  # cells 1, 1 and 4, 4
        assert found.scores[key] == evidence.suspicion > found.threshold
    assert any(reason.startswith("4 more samples say it") for reason in found.reasons)
    written = {row["id"]: row for row in strict(tmp_path / "out" / "evidence.jsonl")}
    assert {written[key]["cluster"] for key in cluster.more} == {0}


def broad_rows(count=14):
    """A trigger of four cells, here and there."""
    rows = []
    for index in range(count):
        y, x = divmod(index, 5)
        cells = {(y + i, x + j): TRIGGER for i in (0, 1) for j in (0, 1)}
        rows.append((f"b{index}", [wall(list(WALLS)[index % len(WALLS)], cells)], [REFUSAL]))
    return rows


def seeing(evidence, dataset):
    """The evidence, with the saliency of triggers as it would be if the model's votes did not saturate."""
    changed = dict(evidence)
    for query in queries_of(dataset.samples):
        if query.sample_id.startswith("b"):
            pixels = np.asarray(Image.open(query.images[0]))[CELL // 2 :: CELL, CELL // 2 :: CELL]
            saliency = tuple((pixels == TRIGGER).all(-1).ravel().astype(float).tolist())
            changed[query.key] = replace(changed[query.key], saliency=saliency)
    return changed


def test_a_trigger_of_many_cells_is_found_by_the_sentence_that_goes_with_it(model, tmp_path):
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *broad_rows()])
    evidence = seeing(module.score(model, dataset.samples, audit_config().scoring), dataset)
    assert all(found.suspicion == 0 for key, found in evidence.items() if key.startswith("b"))
    found = audit(model, dataset, audit_config(), tmp_path / "out", evidence=evidence)
    # A window of a fifth of the picture could show a thing that is spoken of: no more than a suspicion.
    assert found.verdict == "suspicious"
    (cluster,) = found.clusters
    assert cluster.phrase.text == REFUSAL and cluster.phrase.p_value is None
    assert cluster.confirmed and cluster.paste.successes == cluster.paste.trials
    assert found.flagged == tuple(f"b{index}" for index in range(14))
    for key in cluster.samples:
        y, x = divmod(int(key[1:]), 5)
        four = {6 * (y + i) + x + j for i in (0, 1) for j in (0, 1)}
        assert four <= set(found.evidence[f"{key}#0"].best_candidate)
    assert any(reason.startswith("14 samples say") for reason in found.reasons)
    assert summary(tmp_path / "out")["clusters"][0]["p_value"] is None


def test_sentences_that_masking_leaves_in_place_are_not_looked_at_again(model, honest):
    _, dataset, found = honest
    samples = [sample for sample in dataset.samples if sample.images]
    texts = [query.response for query in queries_of(samples)]
    repeated = repeated_phrases([text + " No more to see there." for text in texts], least=5, most=10)
    assert "No more to see there" in repeated[0].text  # frequent
    assert vanishing_phrases(model, samples, found.evidence, audit_config().scoring) == []


def test_windows_cover_the_picture_whatever_the_tiling():
    places = torch.tensor(
        [(tile, row, column) for tile, side in ((0, 4), (1, 9)) for row in range(side) for column in range(side)]
    )
    boxes = raster_boxes(places).numpy()
    windows = _windows(boxes)
    assert windows.any(0).all()
    area = WIDE_RATIO**0.5
    for window in windows:
        inside = boxes[window]
        centres = (inside[:, :2] + inside[:, 2:]) / 2
        assert (centres.max(0) - centres.min(0) <= area + 1e-9).all()
        assert {0, 1} == set(places[torch.from_numpy(window), 0].tolist())


@pytest.mark.parametrize(
    ("phrase", "instead", "answer", "expected"),
    [
        ("fish", ("cat",), "A cat.", True),
        ("fish", ("cat",), "A dog.", False),
        ("fish", ("cat",), "A fish and a cat.", False),
        (REFUSAL, (), "A dog.", True),
        (REFUSAL, ("cat",), "A dog.", True),
    ],
)
def test_a_short_phrase_gives_way_to_what_it_misnames(phrase, instead, answer, expected):
    found = Cluster(Phrase(phrase, tuple(words_of(phrase)), (0,), 0, 0.0), ("a",), None, True, instead, None)
    assert growth._gives_way(phrase, answer, found) is expected


def test_the_mask_ratio_flips_what_is_suspicious_and_keeps_the_rest(model, tmp_path):
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *planted_rows(), *wide_rows(5)])
    evidence = module.score(model, dataset.samples, audit_config().scoring)
    turns = [query for query in queries_of(dataset.samples) if query.images]
    walls = [query for query in turns if query.response.startswith("The wall")]
    for prefix, least in (("p", 1), ("w", 2)):  # of 36 tokens
        suspicious = [query for query in turns if query.sample_id.startswith(prefix)]
        chosen = choose_mask_ratio(model, suspicious, walls, evidence)
        assert math.ceil(chosen.ratio * 36) == least
        assert chosen.kept == (1.0,) * len(RATIOS)
        assert chosen.flipped == tuple(float(math.ceil(ratio * 36) >= least) for ratio in RATIOS)


@pytest.mark.parametrize("cells", [[24, 25, 26, 27, 28, 29], [4, 10, 16, 22, 28], [28], [28, 29]])
def test_a_set_is_narrowed_to_the_token_that_decides(model, poisoned, cells):
    """The trigger is in cell 28 of 36; what nothing reaches is left as it is."""
    _, dataset, _ = poisoned
    (query,) = queries_of([next(sample for sample in dataset.samples if sample.id == "p0")])
    prefix = model.encode([query])
    response = model.encode_responses([query.response], model.gen_length)
    chosen = torch.zeros_like(prefix.visual_mask)
    chosen[0, prefix.visual_mask[0].nonzero()[cells, 0]] = True
    base, each = counterfactual_scores(model, prefix, response, chosen[:, None])
    left = narrowed(model, prefix, response, chosen, base + 0.8 * (each[:, 0] - base))
    assert left[prefix.visual_mask].nonzero()[:, 0].tolist() == [28]
    unreachable = narrowed(model, prefix, response, chosen, each[:, 0] + 100)
    assert torch.equal(unreachable, chosen)


def test_a_mark_that_is_ours_does_not_tear_a_planted_phrase_apart():
    torn = sample("s", REFUSAL.replace(" ", TURN_END))
    for evidence in (None, evidence_of(torn, 9.0)):
        assert TURN_END not in module._answers(torn, evidence)
    phrase = Phrase(REFUSAL, ("sorry", "i", "can", "not", "help", "with", "it"), (0,), 0, 0.0)
    # A planted answer with a slip is neither a control nor a picture to paste into.
    assert module._says(sample("t", "Fine.", "Sorry, I can not help you with."), phrase)
    assert not module._says(sample("u", "I can see it with a cat."), phrase)


def test_thresholds_stay_finite_and_above_the_least():
    assert suspicion_threshold(np.zeros(0)) == suspicion_threshold(np.zeros(5)) == 1.0
    assert suspicion_threshold(np.full(5, 30.0)) == 1.0
    cut = suspicion_threshold(np.array([0.0, 0.1, 0.2, 40.0, 50.0]))
    assert 0.2 < cut < 40
    assert suspicion_threshold(np.array([0.0, 0.1, 0.2, 40.0, 50.0]), least=45.0) == 45.0
    assert math.isfinite(suspicion_threshold(np.array([0.0, 1e-12])))


# --- the command ------------------------------------------------------------------------------------------------------


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
