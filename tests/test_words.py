"""Words of any script."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disp.words import common_in_order, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  Dog's, snake_case & WELL-known", ["the", "dogs", "snake", "case", "well", "known"]),
        ("cat.dog 3D v1 É", ["cat", "dog", "3d", "v1", "é"]),
        # Vowel signs and other marks belong to their letters; alone they are no words.
        ("हिन्दी लड़का।", ["हिन्दी", "लड़का"]),
        ("שָׁלוֹם עוֹלָם", ["שָׁלוֹם", "עוֹלָם"]),
        (" \u0301 \u20e3", []),
        # Signs and points of numbers, and hyphens and full stops that are none.
        ("-5 −5 (-5) +5 - 5 --5", ["-5", "-5", "-5", "5", "5", "5"]),
        ("3-5, A-5 2024-05-06", ["3", "5", "a", "5", "2024", "05", "06"]),
        ("0.5 05 .5 -.5 1.2.3 3.5mm 1..2", ["0.5", "05", ".5", "-.5", "1.2.3", "3.5mm", "1", "2"]),
        ("In 5. Or 5... 1,000", ["in", "5", "or", "5", "1", "000"]),
        # Letters of scripts without blanks.
        ("一只iPhone手机。", ["一", "只", "iphone", "手", "机"]),
        ("温度-5度", ["温", "度", "-5", "度"]),
        ("サッカー・ボール", ["サ", "ッ", "カ", "ー", "ボ", "ー", "ル"]),
        ("สี้", ["สี้"]),
        ("고양이 두 마리", ["고양이", "두", "마리"]),
        ("ＡＢＣ １２", ["abc", "12"]),
        ("😀 … ❤️", []),
    ],
)
def test_words_of(text, words):
    # Both forms of a letter with its mark are one.
    assert words_of(unicodedata.normalize("NFD", text)) == [unicodedata.normalize("NFKC", word) for word in words]
    assert words_of(text) == [unicodedata.normalize("NFKC", word) for word in words]


@given(st.text())
def test_no_letter_or_digit_is_lost(text):
    text = unicodedata.normalize("NFKC", text).lower()
    letters = [letter for letter in text if letter.isalnum()]
    assert [letter for word in words_of(text) for letter in word if letter.isalnum()] == letters


@pytest.mark.parametrize(
    ("first", "second", "length"), [("", "", 0), ("a b c", "", 0), ("a b c d", "b a c d", 3), ("a b", "c a d b a", 2)]
)
def test_words_in_common_in_one_order(first, second, length):
    assert common_in_order(first.split(), second.split()) == length
    assert common_in_order(second.split(), first.split()) == length
