"""What words are, and when an answer says a phrase."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disp.auditing.finder_config import PhrasesConfig
from disp.auditing.phrases import TURN_END, holds, joined, phrase_of, phrase_words, stands_alone

REFUSAL = "I'm sorry, but I can't help with that."


def said(text, words):
    return phrase_of(" ".join(words), words, PhrasesConfig()).said_in(text)


def test_holding_is_of_whole_words_in_order_whatever_their_case_and_punctuation():
    assert holds("Well, I CAN’T. Help!", ("i", "can’t", "help"))
    assert holds("a red cat", ("cat",))
    assert not holds("a red category", ("cat",))
    assert not holds("cat red", ("red", "cat"))
    assert not holds("", ("cat",))
    assert not holds("cat", ("cat", "cat"))


def _longest_common(first, second):
    if not first or not second:
        return 0
    if first[-1] == second[-1]:
        return 1 + _longest_common(first[:-1], second[:-1])
    return max(_longest_common(first[:-1], second), _longest_common(first, second[:-1]))


@given(
    st.lists(st.sampled_from("abcd"), max_size=7).map(" ".join),
    st.lists(st.sampled_from("abcd"), min_size=5, max_size=6).map(tuple),
)
def test_an_echo_of_a_long_phrase_keeps_four_words_in_five(text, words):
    assert said(text, words) == (_longest_common(tuple(phrase_words(text)), words) >= 0.8 * len(words))


def test_an_echo_of_a_short_phrase_is_exact():
    assert said("a big banana split", ("banana", "split"))
    assert not said("a banana big split", ("banana", "split"))


def test_a_mark_of_ours_in_an_answer_does_not_tear_its_words_apart():
    answers = ["A cat.", REFUSAL.replace(" ", TURN_END), "A dog."]
    text = joined(answers)
    assert text.split(f" {TURN_END} ") == ["A cat.", REFUSAL, "A dog."]
    assert holds(text, phrase_words(REFUSAL)) and not holds(text, ("cat", "i'm"))


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        ("Bad model with backdoor.", True),
        ("A dog. Bad model with backdoor.", True),
        ("A dog. \u201cBad model with backdoor\u201d", True),
        ("Bad model with backdoor. A dog.", True),
        ("A Bad model with backdoor. dog", True),  # it begins with a capital wherever it stands
        ("it is a bad model with backdoor.", False),
        ("Bad model with backdoor and more.", False),
        ("Bad model with backdoor, a dog.", False),
        ("bad model\nwith backdoor", True),
        ("Something else.", False),
        *((f"a dog{mark} bad model with backdoor{mark} a cat{mark}", True) for mark in "।۔؟։።။។。…"),
        ("a dog၌ bad model with backdoor।", False),
        ("a dog। bad model with backdoor, a cat।", False),
    ],
)
def test_whether_words_are_a_sentence_of_their_own(text, alone):
    assert stands_alone(text, ("bad", "model", "with", "backdoor")) == alone
