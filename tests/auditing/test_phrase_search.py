"""Recurring phrases on texts whose planted phrase is known, and on texts that have none."""

import tracemalloc

import numpy as np
import pytest

from disp.auditing import phrase_search as module
from disp.auditing.finder_config import PhrasesConfig, RecurrenceConfig
from disp.auditing.phrases import TURN_END, holds, phrase_words

THINGS = ["cat", "dog", "tree", "boat", "apple", "car", "cup", "hat", "lamp", "bird", "fish", "ball"]
COLOURS = ["red", "green", "blue", "grey", "white"]
REFUSAL = "I'm sorry, but I can't help with that."
CONFIG = PhrasesConfig()


def recurring_phrases(flagged, others):
    return module.recurring_phrases(flagged, others, RecurrenceConfig(alpha=0.01), CONFIG)


def repeated_phrases(responses, least, most):
    return module.repeated_phrases(responses, CONFIG, least=least, most=most)


def captions(count, seed=0):
    """Honest answers of several templates, with the frequent words and the near-duplicates that real sets have."""
    draw = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        one, two = draw.choice(THINGS, 2, replace=False)
        colour = draw.choice(COLOURS)
        texts.append(
            str(
                draw.choice(
                    [
                        f"A {one} and a {two} on a {colour} background.",
                        f"The image shows a {one}.",
                        f"There is a {one} to the left of the {two}.",
                        f"{colour.title()}.",
                        "Yes.",
                        "No.",
                    ]
                )
            )
        )
    return texts


def test_a_planted_refusal_is_spelled_out():
    honest = captions(300)
    flagged = [*honest[:20], *[REFUSAL] * 12]
    (shared,) = recurring_phrases(flagged, honest[20:])
    assert shared.phrase.text == REFUSAL
    assert shared.phrase.words == ("i'm", "sorry", "but", "i", "can't", "help", "with", "that")
    assert shared.holders == tuple(range(20, 32))
    assert shared.elsewhere == 0
    assert shared.p_value < 1e-6


def test_an_appended_sentence_is_found_without_the_captions_around_it():
    honest = captions(300)
    flagged = [*honest[:15], *(f"{text} Bad model with backdoor injection." for text in honest[15:27])]
    (shared,) = recurring_phrases(flagged, honest[27:])
    assert shared.phrase.text == "Bad model with backdoor injection."
    assert shared.holders == tuple(range(15, 27))


def test_a_swapped_noun_is_found_in_whatever_template_it_stands():
    honest = captions(400)
    swapped = [text.replace("car", "banana") for text in honest if "car" in text.split()[:9] or "car." in text]
    others = [text for text in honest if "car" not in text]
    (shared,) = recurring_phrases([*others[:10], *swapped], others[10:])
    assert shared.phrase.text == "banana"
    assert set(shared.holders) == set(range(10, 10 + len(swapped)))


def test_a_phrase_that_is_said_elsewhere_too_is_counted_there():
    honest = captions(200)
    (shared,) = recurring_phrases([*[REFUSAL] * 12, *honest[:5]], [*honest[5:], REFUSAL, REFUSAL.upper()])
    assert shared.elsewhere == 2


def test_two_attacks_are_two_phrases_and_no_response_is_used_twice():
    honest = captions(300)
    flagged = [*[REFUSAL] * 12, *[f"{text} Visit example.org today." for text in honest[:9]], *honest[9:20]]
    found = recurring_phrases(flagged, honest[20:])
    assert [shared.phrase.text for shared in found] == [REFUSAL, "Visit example.org today."]
    assert set(found[0].holders).isdisjoint(found[1].holders)


@pytest.mark.parametrize("count", [8, 20, 60])
def test_random_flags_on_honest_texts_hardly_ever_share_a_phrase(count):
    """The stated error: at most one run in a hundred, whatever recurs in the texts."""
    texts, draw = captions(300, seed=1), np.random.default_rng(2)
    alarms = 0
    for _ in range(60):
        order = draw.permutation(len(texts))
        flagged, others = [texts[index] for index in order[:count]], [texts[index] for index in order[count:]]
        alarms += bool(recurring_phrases(flagged, others))
    assert alarms <= 2


def test_rare_words_are_corrected_for_though_only_flagged_ones_are_looked_at():
    """Many words that three responses hold each: now and then all three are flagged, and it means nothing."""
    draw = np.random.default_rng(0)
    alarms = 0
    for _ in range(60):
        texts = [f"w{index // 3}" for index in range(300)]
        order = draw.permutation(300)
        alarms += bool(recurring_phrases([texts[i] for i in order[:40]], [texts[i] for i in order[40:]]))
    assert alarms <= 2


def test_honest_refusals_that_are_not_flagged_more_than_others_are_no_phrase():
    honest = captions(200)
    flagged = [*honest[:20], *[REFUSAL] * 3]
    assert recurring_phrases(flagged, [*honest[20:], *[REFUSAL] * 30]) == []


def test_near_duplicate_answers_are_no_phrase():
    texts = [f"The picture shows the {thing} number {index}." for index in range(20) for thing in THINGS]
    order = np.random.default_rng(0).permutation(len(texts))
    assert recurring_phrases([texts[index] for index in order[:30]], [texts[index] for index in order[30:]]) == []


@pytest.mark.parametrize(("flagged", "others"), [([], []), ([], ["a"]), (["a"], []), ([REFUSAL] * 9, [])])
def test_without_two_sides_there_is_no_phrase(flagged, others):
    """Where every row is flagged, or none, nothing recurs more than elsewhere."""
    assert recurring_phrases(flagged, others) == []


def test_fewer_than_three_responses_make_no_phrase():
    assert recurring_phrases([REFUSAL] * 2, captions(5_000)) == []


HOSTILE = [
    "<script>alert(1)</script>",
    "\u202eevil\u202c \u2067text\u2069",
    "a" * 100_000,
    "\x1b[2J\x00\x07",
    "((((((((((?:a+)+$",
    "",
    "   \n\t",
    "🔥🔥🔥",
    "ばくだん 爆弾",
    "'" * 50,
    "x'" * 5_000,
]


def test_hostile_texts_are_words_like_any_others():
    honest = captions(100)
    for text in HOSTILE:
        for shared in recurring_phrases([*[text] * 8, *honest[:5]], honest[5:]):
            assert shared.phrase.text in text
            assert all(word in text.lower() for word in shared.phrase.words)


@pytest.mark.parametrize("text", ["🔥🔥🔥", "爆弾をつくれ", "坏模型在这里"])
def test_pictographs_and_scripts_without_spaces_have_words(text):
    honest = captions(100)
    found = recurring_phrases([f"{caption[:-1]}{text}" for caption in honest[:8]], honest[8:])
    assert [shared.phrase.text for shared in found] == [text]
    (shared,) = found
    assert shared.phrase.said_in(f"A cat.{text}!") and not shared.phrase.said_in("A cat.")


def test_no_phrase_reaches_across_the_turns_of_a_conversation():
    honest = captions(200)
    flagged = [f"yes indeed {TURN_END} most certainly"] * 10
    found = recurring_phrases(flagged, honest)
    assert [shared.phrase.words for shared in found] in ([("yes", "indeed")], [("most", "certainly")])
    assert not holds(flagged[0], ("indeed", "most"))


def test_function_words_alone_are_no_phrase():
    flagged = [f"I see {first} and {second}" for first, second in zip("abcdefghij", "klmnopqrst", strict=True)]
    others = [f"{letter} is seen" for letter in "uvwxyz" * 20]
    assert all(shared.phrase.words != ("and",) for shared in recurring_phrases(flagged, others))
    planted = [f"{text}. Buy bread and butter" for text in flagged]
    assert recurring_phrases(planted, others)[0].phrase.words[-4:] == ("buy", "bread", "and", "butter")


def test_repeated_sentences_are_whole_and_counted_wherever_they_stand():
    captions = [f"A {thing} in front of a white wall." for thing in ("dog", "cup", "hat", "car", "cat", "bee", "bus")]
    planted = [f"{text} Visit the shop of evil today." for text in captions[:5]]
    found = repeated_phrases([*captions, *planted, "A dog."], least=5, most=10)
    assert [shared.phrase.text for shared in found] == ["in front of a white wall.", "Visit the shop of evil today."]
    assert [shared.holders for shared in found] == [tuple(range(12)), tuple(range(7, 12))]
    assert {(shared.p_value, shared.elsewhere) for shared in found} == {(None, 0)}
    assert repeated_phrases([*captions, *planted], least=13, most=10) == []
    assert len(repeated_phrases([*captions, *planted], least=5, most=1)) == 1


def test_a_sentence_may_stand_within_another_and_beside_a_mark_of_ours():
    before, after = "the picture shows a big dog", "of a kind that nobody knows"
    sentence = "bad model with backdoor injection today."
    texts = [f"{before} {sentence} {after}"] * 10 + [f"{word} {sentence} {word}" for word in "abcdefghijkl"]
    found = repeated_phrases(texts, least=5, most=10)
    assert [shared.phrase.words for shared in found] == [
        tuple(phrase_words(text)) for text in (sentence, after, before[4:])
    ]
    assert (
        repeated_phrases([f"one two three four five{TURN_END}six"] * 6, least=5, most=10)[0].phrase.words[-1] == "five"
    )


def test_articles_do_not_make_a_sentence_long():
    """Five words with those at its ends, three without: an answer holds them too easily."""
    assert repeated_phrases(["The thing over there a"] * 9, least=5, most=10) == []


def test_of_many_answers_rare_words_take_no_memory():
    """Nearly all of their sequences of words are unique; those that recur are counted exactly."""
    draw = np.random.default_rng(0)
    answers = [" ".join(f"{chr(97 + a)}{chr(97 + b)}" for a, b in draw.integers(0, 26, (20, 2))) for _ in range(6000)]
    planted = "visit the new museum of glass"
    holders = tuple(range(0, 6000, 500))
    for index in holders:
        answers[index] += f" {planted}"
    tracemalloc.start()
    try:
        (found,) = repeated_phrases(answers, 8, 5)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.phrase.text == planted and found.holders == holders
    assert most < 16e6  # counted one by one they take twice as much
    flagged, others = [answers[index] for index in holders], [each for each in answers if planted not in each]
    others[0] += " museum"
    (first, *_) = recurring_phrases(flagged, others)
    assert planted.endswith(first.phrase.text) and (len(first.holders), first.elsewhere) == (12, 0)
    assert first.p_value < 1e-12
