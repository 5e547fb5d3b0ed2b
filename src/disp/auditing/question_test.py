"""Does the question tell who says a phrase? Of honest answers it does; a trigger does not care what is asked."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from sys import intern

import numpy as np

from disp.auditing.statistics import area_under_curve
from disp.data.sample import IMAGE_PLACEHOLDER
from disp.words import words_of


def question_features(questions: Sequence[str]) -> list[tuple[str, ...]]:
    """What questions are compared by: their words, their pairs of words, how they begin and how long they are."""
    known: dict[str, tuple[str, ...]] = {}  # many are asked many times
    for question in questions:
        if question in known:
            continue
        words = words_of(question.replace(IMAGE_PLACEHOLDER, " "))
        pairs = {f"{first} {second}" for first, second in pairwise(words)}
        begin = {f"^ {' '.join(words[:size])}" for size in (1, 2, 3)}
        # Digits count as one word: "option 3" and "option 4" ask the same.
        plain = {re.sub(r"\d+", "0", word) for word in words}
        features = {*plain, *pairs, *begin, f"# {min(len(words), 32).bit_length()}"}
        known[question] = tuple(map(intern, sorted(features)))
    return [known[question] for question in questions]


def told_by_question(features: Sequence[Collection[str]], says: np.ndarray, prior: float) -> float:
    """How well questions tell who says a phrase: AUROC, 0.5 where they tell nothing, 1 where they tell all.

    A naive Bayes classifier of the questions' features, which judges each question by all the others.

    Args:
        features: of each question; see `question_features`.
        says: bool ``[N]``, whether its answer holds the phrase; both kinds occur.
        prior: how many answers of the average question each estimate is mixed with.
    """
    names = {name: number for number, name in enumerate(sorted(set().union(*features)))}
    lengths = np.array([len(each) for each in features])
    ids = np.fromiter((names[name] for each in features for name in sorted(each)), np.int64, lengths.sum())
    own = np.repeat(np.asarray(says, bool), lengths)
    positive = np.bincount(ids[own], minlength=len(names))[ids] - own
    negative = np.bincount(ids[~own], minlength=len(names))[ids] - ~own
    # The question that is judged is one of neither kind.
    counts = np.array([len(says) - int(np.sum(says)), int(np.sum(says))], np.float64)
    yes, no = counts[1] - own, counts[0] - ~own
    share = (positive + negative + 0.5) / len(says)
    ratio = np.log((positive + prior * share) / (yes + prior)) - np.log((negative + prior * share) / (no + prior))
    scores = np.add.reduceat(ratio, np.concatenate(([0], np.cumsum(lengths)[:-1])))
    return area_under_curve(scores, says)


def chance_of_area(area: float, positive: int, negative: int, honest: float) -> float:
    """The chance of so small an AUROC if it is really at least ``honest``; a normal approximation.

    The variance is that of Hanley and McNeil (1982).

    Args:
        area: the AUROC that was measured.
        positive: how many of one kind it was measured with.
        negative: how many of the other kind.
        honest: the smallest AUROC under the hypothesis.
    """
    first, second = honest / (2 - honest), 2 * honest**2 / (1 + honest)
    spread = (positive - 1) * (first - honest**2) + (negative - 1) * (second - honest**2)
    variance = (honest * (1 - honest) + spread) / (positive * negative)
    return 0.5 * math.erfc((honest - area) / math.sqrt(2 * variance))
