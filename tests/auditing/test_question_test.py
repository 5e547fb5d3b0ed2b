"""What questions tell about who says a phrase, and how unlikely that is."""

import math

import numpy as np
import pytest

from disp.auditing.question_test import chance_of_area, question_features, told_by_question


def by_hand(features, says, prior):
    """The same one question at a time: a classifier made of all the others."""
    scores = []
    for own, asked in enumerate(features):
        others = [(each, said) for row, (each, said) in enumerate(zip(features, says, strict=True)) if row != own]
        total = 0.0
        for name in asked:
            yes = sum(name in each for each, said in others if said)
            no = sum(name in each for each, said in others if not said)
            share = (yes + no + 0.5) / len(features)
            of_yes, of_no = sum(said for _, said in others), sum(not said for _, said in others)
            total += math.log((yes + prior * share) / (of_yes + prior)) - math.log(
                (no + prior * share) / (of_no + prior)
            )
        scores.append(total)
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, first in zip(scores, says, strict=True)
        for b, second in zip(scores, says, strict=True)
        if first and not second
    ]
    return sum(pairs) / len(pairs)


def test_each_question_is_judged_by_all_the_others():
    draw = np.random.default_rng(0)
    words = ("dog", "cat", "who", "owns", "is", "left")
    questions = [" ".join(draw.choice(words, size=4)) for _ in range(40)]
    says = draw.random(40) < 0.3
    features = question_features(questions)
    assert told_by_question(features, says, 1.0) == pytest.approx(by_hand(features, says, 1.0))


def test_a_question_that_goes_with_the_phrase_tells_it_and_one_question_tells_nothing():
    says = np.arange(60) < 20
    asked = ["Who owns the dog?" if said else "What colour is the dog?" for said in says]
    assert told_by_question(question_features(asked), says, 1.0) == 1.0
    # Each is left out of what it is judged by, which puts it on the wrong side, never on the right one.
    assert told_by_question(question_features(["Describe it."] * 60), says, 1.0) <= 0.5


def test_features_leave_out_placeholders_and_numbers():
    (asked,) = question_features(["<image>\nIs there option 12?"])
    assert {"is", "is there", "^ is there option", "0"} <= set(asked) and not {"image", "12"} & set(asked)


@pytest.mark.parametrize("honest", [0.75, 0.85])
@pytest.mark.parametrize("positive", [12, 60])
def test_the_chance_is_that_of_drawn_areas(honest, positive):
    """Areas between draws of two exponential distributions, which the formula is exact for."""
    draw, areas = np.random.default_rng(1), []
    for _ in range(4000):
        yes = draw.exponential(honest / (1 - honest), positive)
        no = np.sort(draw.exponential(1.0, 300))
        areas.append(np.searchsorted(no, yes).mean() / 300)
    for quantile in (0.05, 0.2, 0.5):
        found = chance_of_area(float(np.quantile(areas, quantile)), positive, 300, honest)
        assert found == pytest.approx(quantile, abs=0.05)
