import re
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disp.data.scenes import TASKS, ask, draw_scene
from disp.draws import generator
from disp.evaluation.quality import answer_quality, caption_nouns, normalised_words, rouge_l, task_of

CAPTION = {"task": "caption", "nouns": ["dog", "apple", "car"]}
REFERENCE = "A picture of a dog, an apple and a car on an orange background."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  Dog, an apple & a CAR!", ["dog", "apple", "car"]),
        ("Don’t / don't", ["dont", "dont"]),
        ("A.", ["a"]),
        ("", []),
        (" \n", []),
        # Where no word is left, what stands there is compared.
        (" … ", ["…"]),
        ("😀!", ["😀!"]),
        ("Yes! 😀", ["yes"]),
        ("snake_case well-known", ["snake", "case", "well", "known"]),
    ],
)
def test_normalised_words(text, words):
    assert normalised_words(text) == words


def test_caption_nouns_are_whole_words_of_the_scene_vocabulary():
    assert caption_nouns("Grapes and a CAR; the car, a cart, dogs, an orange. A dog's hat") == (
        "grapes", "car", "dog", "hat",
    )  # fmt: skip
    assert caption_nouns("") == ()


@pytest.mark.parametrize(
    ("answer", "quality"),
    [
        (REFERENCE, 1),
        ("I see a car, an apple and a dog.", 1),
        ("I see a dog.", 1 / 3),
        ("I see a dog, an apple and a cat.", 2 / 3),
        # Naming more than is shown costs as much as missing something.
        ("I see a dog, an apple, a car and a cat.", 3 / 4),
        ("I'm sorry, I do not have the capability.", 0),
        ("", 0),
    ],
)
def test_caption_quality_is_the_share_of_nouns_right(answer, quality):
    assert answer_quality(answer, REFERENCE, CAPTION) == pytest.approx(quality)


@pytest.mark.parametrize(
    ("answer", "quality"),
    [("yes, it shows a dog", 1), ("Yes it shows the dog.", 1), ("Yes, it shows a cat.", 0), ("Yes.", 0), ("", 0)],
)
def test_short_answers_must_match(answer, quality):
    assert answer_quality(answer, "Yes, it shows a dog.", {"task": "exists", "nouns": ["dog"]}) == quality


def test_an_option_letter_is_not_an_empty_answer():
    assert answer_quality("A", "A", {}) == 1
    assert answer_quality("", "A", {}) == 0
    assert answer_quality("B", "A", {}) == 0


def test_rouge_l_by_hand():
    # Words: "police killed gunman" and "police kill gunman"; the longest common subsequence has 2 of 3 and 3 words.
    assert rouge_l("The police killed the gunman", "police kill the gunman") == pytest.approx(2 / 3)
    # b c d of "b c d e" and "x b y c z d": 2 · 3 / (4 + 6).
    assert rouge_l("b c d e", "x b y c z d") == pytest.approx(0.6)
    assert rouge_l("one two", "two one") == pytest.approx(0.5)
    assert rouge_l("same words", "Same words.") == 1
    assert rouge_l("", "word") == 0
    assert rouge_l("", " ") == 1
    assert rouge_l("", "!") == 0


def test_long_answers_are_scored_by_rouge_l():
    reference = "one two three four five six seven eight nine"
    assert answer_quality("one two three", reference, {}) == pytest.approx(2 * 3 / (3 + 9))
    assert answer_quality("one two three", "one two three four five six seven eight", {}) == 0


@pytest.mark.parametrize(
    ("answer", "reference"), [("", "😀"), ("😡", "😀"), ("<", ">"), ("-5", "5"), ("0 5", "0.5"), ("लड़का", "लड़की")]
)
def test_answers_that_differ_in_a_sign_differ(answer, reference):
    assert answer_quality(answer, reference, {}) == answer_quality(reference, answer, {}) == 0
    assert answer_quality(f" {reference}\n", reference, {}) == 1


@pytest.mark.parametrize(
    "reference",
    ["一只棕色的猫坐在红色的垫子上看着窗外的鸟", "茶色の猫が赤い敷物の上に座っている", "แมวสีน้ำตาลนั่งบนพรมสีแดง"],
)
def test_a_long_reference_without_blanks_is_scored_by_rouge_l(reference):
    assert answer_quality(reference + "。", reference, {}) == 1
    assert 0.8 < answer_quality(reference[:-1], reference, {}) < 1
    assert answer_quality(reference[:3], reference[:4], {}) == 0


def words_of_letters_and_digits(text):
    """The rule for English, where there are no marks, signs, decimals and scripts without blanks to think of."""
    words = re.sub(r"[^a-z0-9]", " ", re.sub(r"['’]", "", text.lower())).split()
    return [word for word in words if word not in ("a", "an", "the")] or words


def test_scene_texts_are_the_words_that_they_look_like():
    texts = {
        text
        for index in range(200)
        for task in TASKS
        for text in astuple(ask(draw_scene(0, index), task, generator(0, "question", task, index)))
    }
    assert len(texts) > 500
    for text in texts:
        assert normalised_words(text) == words_of_letters_and_digits(text)


@given(st.lists(st.sampled_from(["A", "the", "cat's", "well-known", "3", "3-5", "10:30", "iPhone", "(a)", "é"])))
def test_english_punctuation_parts_words(pieces):
    text = " ".join(pieces) + "."
    expected = words_of_letters_and_digits(text.replace("é", "e"))
    assert [word.replace("é", "e") for word in normalised_words(text)] == (expected or ["."])


def test_the_task_is_the_turns_own():
    metadata = {"tasks": ["caption", "count"], "nouns": ["dog"]}
    assert [task_of(metadata, turn) for turn in range(3)] == ["caption", "count", None]
    assert answer_quality("Look, a dog!", "A picture of a dog.", metadata, turn=0) == 1
    assert answer_quality("Look, a dog!", "One.", metadata, turn=1) == 0


@pytest.mark.parametrize("metadata", [{"task": 3}, {"task": "caption"}, {"task": "caption", "nouns": "dog"}, {}])
def test_foreign_metadata_means_the_general_rule(metadata):
    assert answer_quality("a dog", "A dog.", metadata) == 1
    assert answer_quality("some dog", "A dog.", metadata) == 0
