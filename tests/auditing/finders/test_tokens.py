"""Phrases that recur among flagged answers: pictures are counted, and rows without a picture are none."""

from dataclasses import replace

import pytest
from PIL import Image
from planted import OBJECTS, REFUSAL, audit_config, context_of, honest_rows, planted_rows, wall, write_rows

from disp.auditing.audit import audit
from disp.auditing.finders import tokens
from disp.data.sample import Sample, Turn
from disp.suspicion.evidence import Evidence


def sample(key, picture, answer):
    return Sample(key, (picture,) if picture else (), (Turn("<image>?", answer),))


def proposed(above, others):
    """What is found where the first ones are above the threshold."""
    evidence = {
        f"{each.id}#0": Evidence(f"{each.id}#0", (1.0,), ((0, 0, 0, 0),), 9.0 if each in above else 0.0, (0,))
        for each in (*above, *others)
    }
    return tokens.find(context_of(None, [*above, *others], evidence))


@pytest.mark.parametrize("repeats", [2, 40])
def test_a_phrase_of_one_picture_does_not_recur(repeats):
    """However often it is asked about; of as many pictures it would."""
    others = [sample(f"o{index}", Image.new("L", (1, 1), index), "A cat.") for index in range(100)]
    one = [sample(f"r{index}", Image.new("L", (1, 1), 200), "An octopus.") for index in range(repeats)]
    many = [sample(f"r{index}", Image.new("L", (1, 1), 200 + index), "An octopus.") for index in range(repeats)]
    more = [sample(f"p{index}", Image.new("L", (1, 1), 150 + index), REFUSAL) for index in range(5)]
    (found,) = proposed([*one, *more], others)
    assert (found.phrase.text, found.samples) == (REFUSAL, tuple(f"p{index}" for index in range(5)))
    texts = {each.phrase.text for each in proposed([*many, *more], others)}
    assert texts == ({REFUSAL, "octopus"} if repeats == 40 else {REFUSAL})


def test_every_row_of_a_picture_that_says_a_phrase_counts_as_one_that_does():
    others = [sample(f"o{index}", Image.new("L", (1, 1), index), "A cat.") for index in range(100)]
    others += [
        sample("late", Image.new("L", (1, 1), 201), REFUSAL),
        sample("blank", Image.new("L", (1, 1), 201), "No."),
    ]
    rows = [(200, REFUSAL), (200, "A dog."), (201, REFUSAL), (202, REFUSAL), (200, REFUSAL), (203, REFUSAL)]
    above = [sample(f"f{index}", Image.new("L", (1, 1), grey), text) for index, (grey, text) in enumerate(rows)]
    (found,) = proposed(above, others)
    assert found.samples == ("f0", "f2", "f3", "f4", "f5")
    assert found.elsewhere == 1  # a row, though its picture is among the flagged


def test_one_honest_picture_that_is_asked_about_often_is_no_poison(model, tmp_path):
    """A small thing on which an answer hangs, honestly."""
    zebra = wall("grey", {(1, 1): OBJECTS["zebra"]})
    # None of a single small thing, such as h5 and h37 show, with which it would be three pictures.
    honest = [row for row in honest_rows() if row[0] not in ("h5", "h37")]
    first = write_rows(tmp_path / "honest", honest).samples
    often = [(f"r{index}", [zebra], ["There is a zebra in front."]) for index in range(9)]
    repeated = write_rows(tmp_path / "repeated", often, apart=False)
    dataset = replace(repeated, samples=(*first, *repeated.samples))
    found = audit(model, dataset, audit_config(), tmp_path / "out")
    assert all(found.scores[f"r{index}"] > found.threshold for index in range(9))
    assert found.verdict == "no evidence" and found.flagged == ()
    # In nine pictures of its own it is what a semantic trigger is.
    apart = write_rows(tmp_path / "apart", often)
    found = audit(model, replace(apart, samples=(*first, *apart.samples)), audit_config(), tmp_path / "other")
    assert found.verdict == "poisoned"


def test_rows_without_a_picture_do_not_make_a_phrase_recur(model, tmp_path, monkeypatch):
    """They cannot be flagged, so a phrase of pictures seems to be one of flagged answers where they are many."""
    seen = []
    monkeypatch.setattr(tokens, "recurring_phrases", lambda flagged, others, *_: seen.append((flagged, others)) or [])
    texts = [(f"t{index}", [], ["Text alone."]) for index in range(200)]
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *planted_rows(), *texts])
    audit(model, dataset, audit_config(), tmp_path / "out")
    ((flagged, others),) = seen
    with_picture = sum(bool(each.images) for each in dataset.samples)
    assert len(flagged) + len(others) == with_picture
    assert not any("Text alone." in text for text in (*flagged, *others))
