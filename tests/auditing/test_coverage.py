"""What an audit has not looked at is counted and said."""

import json

import pytest
from planted import LENGTH, audit_config, honest_rows, summary, write_rows

from disp.auditing.audit import audit
from disp.auditing.coverage import answers_cut
from disp.errors import DispError


def test_an_answer_is_cut_if_a_token_of_it_has_no_slot(model):
    fits, longer = (" ".join(["a"] * count) for count in (LENGTH, LENGTH + 1))
    model.encode_responses([fits], LENGTH)
    with pytest.raises(DispError, match="does not fit"):
        model.encode_responses([longer], LENGTH)
    assert [answers_cut(model, [each]) for each in (fits, longer)] == [0, 1]
    assert answers_cut(model, ["The wall is red.", longer, fits, longer]) == 2
    assert answers_cut(model, []) == 0


def test_answers_longer_than_the_slots_are_counted_in_reasons_and_record(model, tmp_path):
    rows = honest_rows(24)
    for index in (0, 3):
        key, pictures, (answer,) = rows[index]
        rows[index] = key, pictures, [f"{answer} {answer} {answer} {answer}"]
    dataset = write_rows(tmp_path / "data", rows)
    found = audit(model, dataset, audit_config(), tmp_path / "out")
    told = summary(tmp_path / "out")
    assert told["answers_cut"] == found.missed.answers_cut == 2
    turns = sum(len(sample.turns) for sample in dataset.samples if sample.images)
    (said,) = [reason for reason in found.reasons if "longer than" in reason]
    assert said.startswith(f"2 of {turns} answers are longer than the model's response slots ({LENGTH} tokens)")
    assert "was not scored" in said and json.dumps(said) in json.dumps(told["reasons"])


def test_answers_without_a_word_are_counted(model, tmp_path):
    rows = honest_rows(24)
    for index, answer in ((0, ""), (3, "..."), (5, "")):
        key, pictures, _ = rows[index]
        rows[index] = key, pictures, [answer]
    dataset = write_rows(tmp_path / "data", rows)
    found = audit(model, dataset, audit_config(), tmp_path / "out")
    assert summary(tmp_path / "out")["answers_without_words"] == found.missed.wordless == 3
    (said,) = [reason for reason in found.reasons if "no word" in reason]
    turns = sum(len(sample.turns) for sample in dataset.samples if sample.images)
    assert said.startswith(f"3 of {turns} answers have no word in them.")
