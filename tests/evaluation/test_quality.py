import pytest

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
        ("…", []),
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
    assert rouge_l("", "!") == 1


def test_long_answers_are_scored_by_rouge_l():
    reference = "one two three four five six seven eight nine"
    assert answer_quality("one two three", reference, {}) == pytest.approx(2 * 3 / (3 + 9))
    assert answer_quality("one two three", "one two three four five six seven eight", {}) == 0


def test_the_task_is_the_turns_own():
    metadata = {"tasks": ["caption", "count"], "nouns": ["dog"]}
    assert [task_of(metadata, turn) for turn in range(3)] == ["caption", "count", None]
    assert answer_quality("Look, a dog!", "A picture of a dog.", metadata, turn=0) == 1
    assert answer_quality("Look, a dog!", "One.", metadata, turn=1) == 0


@pytest.mark.parametrize("metadata", [{"task": 3}, {"task": "caption"}, {"task": "caption", "nouns": "dog"}, {}])
def test_foreign_metadata_means_the_general_rule(metadata):
    assert answer_quality("a dog", "A dog.", metadata) == 1
    assert answer_quality("some dog", "A dog.", metadata) == 0
