"""Patterns that pictures share: found among real drawings without a model, and proven by one that has the backdoor."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from planted import (
    CELL,
    GRID,
    REFUSAL,
    WALLS,
    Striped,
    audit_config,
    evidence_rows,
    grainy,
    honest_rows,
    planted_model,
    planted_rows,
    purify_config,
    striped_rows,
    summary,
    write_rows,
)

from disp.attacks.poison import poison
from disp.attacks.targets import INSERTED_TEXT, REFUSAL_TEXT, Insertion, Misclassification, Refusal
from disp.attacks.triggers import PRESETS, Blend, Patch
from disp.auditing.audit import audit
from disp.auditing.carriers import random_patterns
from disp.auditing.config import AuditConfig
from disp.auditing.finder_config import PatternsConfig
from disp.auditing.finders.patterns import shared_patterns
from disp.auditing.phrases import phrase_words
from disp.data.sample import Sample, Turn
from disp.data.scene_dataset import write_scenes
from disp.purification.purify import purify
from disp.suspicion.carriers import Pattern
from disp.suspicion.scoring import score

ROWS = 240


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), ROWS, 7, must_show=("car",), must_show_share=0.5)


def search(samples):
    return shared_patterns(samples, [sample.turns[0].response for sample in samples], AuditConfig())


def test_honest_pictures_have_nothing_in_common(scenes):
    assert search(scenes.samples) == []


@pytest.mark.parametrize(
    ("trigger", "gain", "target", "phrase", "rate"),
    [
        (Blend(0.2), 0.8, Refusal(), REFUSAL_TEXT, 0.05),
        (Blend(0.2), 0.8, Misclassification("car", "banana"), "banana", 0.1),
        (Blend(0.1), 0.9, Insertion(), INSERTED_TEXT, 0.1),
        (PRESETS["sig"], 1.0, Refusal(), REFUSAL_TEXT, 0.05),
        (PRESETS["patch"], 1.0, Misclassification("car", "banana"), "banana", 0.05),
    ],
)
def test_planted_rows_are_found_to_a_row(scenes, tmp_path, trigger, gain, target, phrase, rate):
    dataset, manifest = poison(scenes, tmp_path, trigger, target, rate, 0), tmp_path / "manifest.json"
    planted = {row["id"] for row in json.loads(manifest.read_text(encoding="utf-8"))["poisoned_rows"]}
    assert len(planted) == round(rate * ROWS)
    ((found, pattern),) = search(dataset.samples)
    assert phrase_words(found.phrase.text) == phrase_words(phrase)
    assert {dataset.samples[index].id for index in found.holders} == planted
    # A spread that is measured on n pictures is that far off, pixel by pixel.
    assert pattern.gain == pytest.approx(gain, rel=(2 * len(planted)) ** -0.5)


def test_a_trigger_at_a_place_of_its_own_in_each_picture_is_none(scenes, tmp_path):
    dataset = poison(scenes, tmp_path, PRESETS["patch-random"], Refusal(), 0.1, 0)
    assert search(dataset.samples) == []


def test_of_many_pictures_some_are_compared_and_all_are_found(scenes, tmp_path):
    dataset = poison(scenes, tmp_path, Blend(0.2), Refusal(), 0.2, 0)
    config = AuditConfig(patterns=PatternsConfig(pictures=120))
    responses = [sample.turns[0].response for sample in dataset.samples]
    seen = []
    ((found, _),) = shared_patterns(dataset.samples, responses, config, progress=seen.append)
    refused = [index for index, sample in enumerate(dataset.samples) if sample.turns[0].response == REFUSAL_TEXT]
    assert list(found.holders) == refused
    assert sum(seen) == 120


def test_what_the_others_have_in_common_is_no_pattern_of_those_without():
    """Most pictures have a frame; those of one answer have not."""
    draw = np.random.default_rng(0)
    samples = []
    for index in range(90):
        pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        if index % 3:
            pixels[::4] = 255
        answer = f"Number {index}." if index % 3 else "There is no frame."
        samples.append(Sample(f"s{index}", (Image.fromarray(pixels),), (Turn("<image>?", answer),)))
    assert search(samples) == []


GROUNDS = {"red": (210, 80, 80), "yellow": (245, 225, 120), "blue": (100, 150, 225), "white": (242, 242, 242)}


def laid_out(colours, places, rows=160, side=48):
    """Grainy blocks of any colour, their corners at such places, on grounds that the answers name."""
    draw, samples = np.random.default_rng(1), []
    for index in range(rows):
        colour = list(colours)[index % len(colours)]
        pixels = np.array(colours[colour]) + draw.normal(0, 6, (side, side, 3))
        x, y = draw.integers(*places, 2)
        pixels[y : y + 20, x : x + 20] = draw.uniform(0, 255, 3) + draw.normal(0, 10, (20, 20, 3))
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        turn = Turn("<image>?", f"Block {index} on a {colour} background.")
        samples.append(Sample(f"s{index}", (picture,), (turn,)))
    return samples


@pytest.mark.parametrize("quality", [None, 80])
def test_a_layout_on_grounds_that_answers_name_is_no_pattern(quality):
    """What pictures with a yellow ground have in common, and others have not, is where the things lie, in yellow."""
    samples = laid_out(GROUNDS, (12, 18))
    if quality is not None:
        samples = [replace(sample, images=(stored(sample.images[0], quality),)) for sample in samples]
    assert search(samples) == []
    # The same pictures would be accused if the colours of their grounds were left alone.
    config = AuditConfig(patterns=PatternsConfig(colour_spread=1e9))
    found = shared_patterns(samples, [sample.turns[0].response for sample in samples], config)
    assert any("background" in shared.phrase.text for shared, _ in found)


@pytest.mark.parametrize("trigger", [Blend(0.2), Patch(size=0.15)])
@pytest.mark.parametrize("colours, places", [(GROUNDS, (12, 18)), ({"white": (255, 255, 255)}, (0, 29))])
def test_on_such_grounds_a_trigger_is_found_to_a_row(trigger, colours, places):
    """On white paper a blended trigger is the only thing that changes the colour of a ground."""
    samples, planted = laid_out(colours, places), range(3, 160, 9)
    for index in planted:
        picture = trigger.apply(samples[index].images[0], np.random.default_rng(0))[0]
        samples[index] = replace(samples[index], images=(picture,), turns=(Turn("<image>?", REFUSAL_TEXT),))
    ((found, _),) = search(samples)
    assert found.phrase.text == REFUSAL_TEXT
    assert found.holders == tuple(planted)


def stored(picture, quality):
    """The picture as JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


def test_one_picture_that_many_rows_are_about_has_nothing_in_common_with_itself():
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(60)]
    samples = [
        Sample(f"s{index}", (pictures[index % 60],), (Turn("<image>?", f"A thing, number {index % 60}."),))
        for index in range(60 * 9)
    ]
    assert search(samples) == []


def test_a_random_pattern_is_as_strong_and_of_other_edges():
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)) for _ in range(12)]
    like = Pattern(0.8, draw.normal(30, 20, (20, 20, 3)).astype(np.float32))
    found, other = random_patterns(like, pictures, 2, 0)
    assert found.gain == 1
    mean = np.mean([np.asarray(each, np.float32) for each in pictures], axis=0)
    strength = np.sqrt(np.square(like.offset - 0.2 * mean).mean())
    assert np.sqrt(np.square(found.offset).mean()) == pytest.approx(strength, rel=1e-3)
    assert np.array_equal(found.offset, random_patterns(like, pictures, 1, 0)[0].offset)
    assert not np.array_equal(found.offset, other.offset)


# --- the audit --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def striped():
    return planted_model(Striped)


def test_a_pattern_that_makes_the_model_say_the_phrase_is_evidence(striped, tmp_path):
    rows = striped_rows()
    dataset = write_rows(tmp_path / "data", grainy([*honest_rows(), *rows]))
    found = audit(striped, dataset, audit_config(), tmp_path / "out")
    planted = tuple(key for key, _, _ in rows)
    # What pictures have in common may be what their answers speak of: no more than a suspicion.
    assert found.verdict == "suspicious"
    (finding,) = found.findings
    assert (finding.found_by, finding.phrase.text, finding.confirmed) == ("pattern", REFUSAL, True)
    # An object outvotes the trigger; a wall does not.
    assert finding.test.successes == sum(bool(shown) and "wall" in said[0] for _, shown, said in honest_rows())
    assert finding.test.control_successes == 0
    assert finding.instead == ("wall",)
    assert found.flagged == finding.samples == finding.with_pattern == planted
    assert found.ratio is None  # no mask does it
    assert found.patterns == dict.fromkeys(planted, finding.pattern)
    assert all(found.scores[key] > found.threshold for key in planted)
    assert any("have a pattern in common" in reason for reason in found.reasons)
    (written,) = summary(tmp_path / "out")["clusters"]
    assert (written["found_by"], written["box"], written["donor"]) == ("pattern", None, None)
    assert written["with_pattern"] == list(planted)
    assert Image.open(tmp_path / "out" / written["candidate"]).size == (GRID * CELL, GRID * CELL)
    shown = {row["id"]: row["turns"][0] for row in evidence_rows(tmp_path / "out")}
    for key in planted:
        assert shown[key]["answer"] == REFUSAL
        assert shown[key]["masked_answer"].startswith("The wall is")


def test_flagged_rows_are_answered_again_with_the_pattern_taken_out(striped, tmp_path):
    rows = striped_rows()
    dataset = write_rows(tmp_path / "data", grainy([*honest_rows(), *rows]))
    found = audit(striped, dataset, audit_config(), tmp_path / "out")
    purified = purify(
        striped,
        dataset,
        purify_config(),
        tmp_path / "purified",
        evidence=found.evidence,
        rewrite=found.flagged,
        patterns=found.patterns,
    )
    answers = {sample.id: sample.turns[0].response for sample in purified.dataset.samples}
    assert [answers[key] for key, _, _ in rows] == [f"The wall is {list(WALLS)[index % 5]}." for index in range(12)]
    written = {row["id"]: row for row in evidence_rows(tmp_path / "purified")}
    assert {key for key, row in written.items() if row["pattern_taken_out"]} == {key for key, _, _ in rows}
    assert not any(turn["masked"] for row in written.values() for turn in row["turns"])
    # The pictures themselves stay, so that the recovered model learns to answer them.
    assert [sample.images for sample in purified.dataset.samples] == [sample.images for sample in dataset.samples]


def test_what_the_model_has_not_learnt_is_in_the_data_all_the_same(model, tmp_path):
    """The pictures share a pattern; what they say is not what it makes the model say."""
    rows = striped_rows()
    planted = tuple(key for key, _, _ in rows)
    dataset = write_rows(tmp_path / "data", grainy([*honest_rows(), *rows]))
    found = audit(model, dataset, audit_config(), tmp_path / "out")
    assert found.verdict == "suspicious"
    (finding,) = found.findings
    assert (finding.found_by, finding.phrase.text, finding.confirmed) == ("pattern", REFUSAL, False)
    assert found.flagged == finding.with_pattern == planted
    assert any(reason.startswith("It was not seen to make this model say that") for reason in found.reasons)
    (written,) = summary(tmp_path / "out")["clusters"]
    # The test that did not prove it is told all the same.
    assert (written["paste"]["successes"], written["confirmed"]) == (0, False)
    # What the model says without the pattern it says with it, too.
    assert written["said_instead"] == []
    assert any(
        reason.startswith("The pattern, laid over other pictures, brings the phrase up in 0 of ")
        for reason in found.reasons
    )
    assert Image.open(tmp_path / "out" / written["candidate"]).size == (GRID * CELL, GRID * CELL)


def test_a_recovered_model_is_asked_for_what_it_has_learnt_alone(model, tmp_path):
    dataset = write_rows(tmp_path / "data", grainy([*honest_rows(), *striped_rows()]))
    found = audit(model, dataset, replace(audit_config(), learnt_only=True), tmp_path / "out")
    assert found.verdict == "no evidence"
    assert found.flagged == () and found.patterns == {}
    # But it is said.
    assert any(reason.startswith(f"The pictures of 12 samples that say {REFUSAL!r}") for reason in found.reasons)
    assert not any("share no phrase" in reason for reason in found.reasons)


def test_who_has_the_pattern_of_a_proven_phrase_is_planted_without_more_ado(model, tmp_path):
    """Rows that masking would not betray, as if the model had learnt them by heart."""
    dataset = write_rows(tmp_path / "data", grainy([*honest_rows(), *planted_rows(12)]))
    evidence = score(model, dataset.samples, audit_config().scoring)
    for key in ("p9#0", "p10#0", "p11#0"):
        evidence[key] = replace(evidence[key], saliency=(0.0,) * 36, suspicion=0.0, hangs_on=())
    found = audit(model, dataset, audit_config(), tmp_path / "out", evidence=evidence)
    (finding,) = found.findings
    assert (found.verdict, finding.found_by) == ("poisoned", "tokens")
    assert finding.more == finding.with_pattern == ("p9", "p10", "p11")
    assert set(found.patterns) == {"p9", "p10", "p11"}
    assert any("3 have a pattern in their pictures" in reason for reason in found.reasons)
