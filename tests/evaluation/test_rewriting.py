"""The cost of rewriting against a slow CIDEr and hand-made pairs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disp.evaluation.rewriting import cider, rewriting_loss

CORPUS = [
    "A red cat sits on the mat.",
    "A red dog runs over the mat.",
    "Two dogs and one cat.",
    "Yes.",
    "The cat is on the mat and the dog is not.",
]


def plain(text):
    """Words as the metric takes them, of texts without apostrophes; signs alone are one."""
    words = "".join(character if character.isalnum() else " " for character in text.lower()).split()
    return [word for word in words if word not in ("a", "an", "the")] or words or ([text] if text else [])


def slow_cider(reference, answer, corpus):
    """Vedantam et al. 2015, equations 1 and 2, with dense vectors over all n-grams of the pair."""
    sizes = []
    for n in range(1, 5):

        def grams(text, n=n):
            words = plain(text)
            return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

        every = sorted({*grams(reference), *grams(answer)})
        if not every:
            continue
        idf = [
            math.log(max(2, len(corpus)) / max(1, sum(gram in grams(document) for document in corpus)))
            for gram in every
        ]
        # The published term frequency is divided by the length, which the cosine takes out again.
        x, y = (
            np.array(
                [grams(text).count(gram) / max(1, len(grams(text))) * w for gram, w in zip(every, idf, strict=True)]
            )
            for text in (reference, answer)
        )
        if x.any() and y.any():
            sizes.append(x @ y / math.sqrt(x @ x) / math.sqrt(y @ y))
        else:
            sizes.append(float(plain(reference) == plain(answer)))
    return 10 * sum(sizes) / len(sizes) if sizes else 10.0


WORDS = st.lists(st.sampled_from(["cat", "dog", "mat", "red", "the", "on", "yes", "bird", "."]), max_size=9)
TEXTS = WORDS.map(" ".join)


@given(TEXTS, TEXTS, st.lists(TEXTS, max_size=4))
def test_cider_equals_a_slow_one(reference, answer, corpus):
    corpus = [*CORPUS, *corpus, reference]
    (found,) = cider([reference], [answer], corpus)
    assert found == pytest.approx(slow_cider(reference, answer, corpus), abs=1e-9)
    assert -1e-9 <= found <= 10 + 1e-9


def test_cider_of_the_same_words_is_ten_and_of_others_nothing():
    assert cider(CORPUS, CORPUS, CORPUS) == pytest.approx([10] * len(CORPUS))
    assert cider(["A red cat."], ["Two birds."], CORPUS) == [0]
    assert cider(["", "cat", ""], ["", "", "cat"], CORPUS) == [10, 0, 0]
    assert cider(["Yes.", "No."], ["YES!", "no"], []) == [10, 10]


def test_rare_words_count_for_more_than_frequent_ones():
    corpus = [*["a cat here"] * 9, "a zebra there"]
    rare, frequent = cider(["cat zebra"] * 2, ["zebra bird", "cat bird"], corpus)
    assert rare > frequent > 0


def test_the_loss_is_the_mean_over_pairs():
    old = ["A red cat.", "Two dogs and one cat.", "Yes."]
    new = ["a red cat", "Two dogs.", ""]
    found = rewriting_loss(old, new, CORPUS)
    assert found.count == 3
    assert found.unchanged == pytest.approx(1 / 3)
    assert found.length_ratio == pytest.approx((2 + 2 + 0) / (2 + 5 + 1))
    # Longest common subsequences: 2 of 2 and 2; 2 of 5 and 2; none.
    assert found.rouge_l == pytest.approx((1 + 4 / 7 + 0) / 3)
    assert found.cider == pytest.approx(sum(slow_cider(a, b, CORPUS) for a, b in zip(old, new, strict=True)) / 3)


def test_no_pairs_are_no_loss_and_uneven_ones_an_error():
    found = rewriting_loss([], [], CORPUS)
    assert (found.count, found.unchanged, found.length_ratio, found.rouge_l, found.cider) == (0, 1, 1, 1, 10)
    with pytest.raises(ValueError, match="got 1 and 2"):
        rewriting_loss(["a"], ["a", "b"], CORPUS)


def test_empty_answers_are_counted_and_do_not_divide_by_zero():
    found = rewriting_loss(["", " "], ["cat", ""], [""])
    assert found.length_ratio == 1.0
    assert found.unchanged == 0.5
