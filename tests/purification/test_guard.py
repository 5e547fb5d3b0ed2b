"""Answers under masking: what is masked, what is answered, and what is flagged."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import LENGTH, REFUSAL, TRIGGER, planted_model, wall

from disp.data.sample import Query
from disp.decoding.generate import generate
from disp.decoding.samplers import decode_config
from disp.errors import DispError
from disp.purification.guard import GuardConfig, guard, word_agreement
from disp.suspicion.config import SaliencyConfig


def settings(**changes):
    decode = decode_config(gen_length=LENGTH, steps=2)
    return GuardConfig(**{"mask_ratio": 1 / 36, "saliency": SaliencyConfig(probes=2), "decode": decode, **changes})


def ask(key, *pictures):
    return Query(key, 0, pictures, (), "What is in the picture?")


@pytest.fixture(scope="module")
def model():
    return planted_model()


def test_a_trigger_is_masked_away_and_the_input_is_flagged(model):
    marked = wall("green", {(2, 3): TRIGGER})
    queries = [
        ask("a", marked),
        ask("b", wall("red")),
        ask("c"),
        ask("d", wall("blue"), wall("blue", {(0, 0): TRIGGER})),
    ]
    triggered, honest, _, second = guard(model, queries, settings())
    assert (triggered.unmasked, triggered.answer, triggered.flagged) == (REFUSAL, "The wall is green.", True)
    assert (honest.unmasked, honest.answer, honest.flagged) == ("The wall is red.", "The wall is red.", False)
    assert honest.agreement == 1
    assert (second.unmasked, second.answer, second.flagged) == (REFUSAL, "The wall is blue.", True)


def test_a_query_without_a_picture_is_answered_as_it_is(tiny_model, queries):
    config = settings(decode=decode_config(gen_length=4, steps=2), mask_ratio=0.5)
    for asked in (queries, [queries[2]]):
        plain = generate(tiny_model, asked, config.decode)
        found = guard(tiny_model, asked, config)
        assert [each.unmasked for each in found] == plain
        assert all(
            each.answer == each.unmasked and not each.flagged
            for each, query in zip(found, asked, strict=True)
            if not query.images
        )


def test_batches_change_nothing_and_progress_is_told(model):
    queries = [ask(str(index), wall("grey", {(1, 1): TRIGGER} if index % 2 else None)) for index in range(5)]
    seen = []
    whole = guard(model, queries, settings())
    assert guard(model, queries, settings(batch_size=2), progress=seen.append) == whole
    assert seen == [2, 2, 1]
    assert [each.flagged for each in whole] == [False, True, False, True, False]
    assert guard(model, [], settings()) == []


def test_with_nothing_masked_nothing_is_flagged(model):
    (found,) = guard(model, [ask("a", wall("red", {(5, 5): TRIGGER}))], settings(mask_ratio=0.0))
    assert (found.answer, found.agreement, found.flagged) == (REFUSAL, 1.0, False)


def test_saliency_is_that_of_the_answer_that_is_decoded(model, monkeypatch):
    seen = []
    denoise = model.denoise
    monkeypatch.setattr(
        model,
        "denoise",
        lambda prefix, response, cache=None: seen.append(response.shape[1]) or denoise(prefix, response),
    )
    monkeypatch.setattr(model, "gen_length", 99)
    monkeypatch.setattr(model.config, "answers", torch.tensor(model.config.answers)[:, :8].tolist())
    guard(model, [ask("a", wall("red"))], settings(decode=decode_config(gen_length=8, steps=2)))
    assert set(seen) == {8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_ratio": 1.1}, "mask_ratio must be in"),
        ({"mask_ratio": -0.1}, "mask_ratio must be in"),
        ({"least_agreement": 2}, "least_agreement must be in"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(DispError, match=message):
        settings(**change)


TEXTS = st.lists(st.sampled_from(["cat", "Cat", "dog", "hat"]), max_size=6).map(" ".join)


@given(TEXTS, TEXTS)
def test_agreement_is_the_f1_of_words_matched_one_to_one(first, second):
    left = Counter(first.lower().split())
    matched = 0
    for word in second.lower().split():
        if left[word]:
            left[word] -= 1
            matched += 1
    sizes = len(first.split()), len(second.split())
    if not any(sizes):
        expected = 1.0
    elif not all(sizes) or not matched:
        expected = 0.0
    else:
        precision, recall = matched / sizes[1], matched / sizes[0]
        expected = 2 * precision * recall / (precision + recall)
    assert word_agreement(first, second) == pytest.approx(expected)
    assert word_agreement(first, second) == word_agreement(second, first)


@pytest.mark.parametrize(
    ("first", "second", "agreement"),
    [
        ("Yes.", "yes", 1),
        ("A cat, and a hat!", "the cat and hat", 1),
        ("Yes.", "No.", 0),
        ("-5", "5", 0),
        ("😀", "", 0),
        ("", " ", 1),
        # Nine of ten letters on either side.
        ("一只棕色的猫坐在垫子", "一只棕色的狗坐在垫子", 0.9),
    ],
)
def test_agreement_is_that_of_the_words_answers_are_scored_by(first, second, agreement):
    assert word_agreement(first, second) == pytest.approx(agreement)
