"""Sentences that recur in the answers whatever was asked, from questions and answers alone.

A planted sentence comes up where the trigger is, and the trigger does not care what is asked. An honest sentence goes
with its question: a refusal with what a picture cannot tell, a frame with one wording. So does it in sets of one
question; there only what honest sentences have besides tells them apart: they come in variants, as sentences of people
and models do, or most answers repeat one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from disp.auditing.finder_config import PhrasesConfig, UnaskedConfig
from disp.auditing.phrase_search import Shared, repeated_phrases
from disp.auditing.phrases import holds, phrase_words, stands_alone
from disp.auditing.question_test import chance_of_area, question_features, told_by_question
from disp.draws import generator


@dataclass(frozen=True)
class Asked:
    """One turn as this search sees it.

    Attributes:
        picture: what tells its picture from others.
        question: the user's message.
        answer: the response.
    """

    picture: str
    question: str
    answer: str


def unasked_phrases(
    turns: Sequence[Asked], config: UnaskedConfig, phrases: PhrasesConfig, *, alpha: float, seed: int = 0
) -> list[Shared]:
    """Sentences that recur whatever was asked, most frequent first; holders are indices of turns.

    Args:
        turns: what was asked and answered.
        config: when a sentence recurs so.
        phrases: what makes words a phrase.
        alpha: largest p-value, corrected for the sentences that were tried.
        seed: of the choice of one turn a picture.

    Returns:
        Each with its p-value: the chance that the questions tell so little of who says it, if it went with questions
        as honest sentences do.
    """
    draw = generator(seed, "unasked sentences")
    chosen = sorted(draw.permutation(len(turns))[: config.turns].tolist())
    answers = [turns[index].answer for index in chosen]
    pictures = [turns[index].picture for index in chosen]
    count = len(set(pictures))
    least = max(config.least_pictures, round(config.least_share * count))
    repeated = [
        shared
        for shared in repeated_phrases(answers, phrases, least=least, most=config.sentences)
        if len({pictures[index] for index in shared.holders}) >= least and _is_sentence(shared, answers, config)
    ]
    features: list[set[str]] | None = None
    order = draw.permutation(len(chosen)).tolist()
    spread: list[tuple[Shared, float]] = []
    for shared in repeated:
        features = question_features([turns[index].question for index in chosen]) if features is None else features
        rows, says = _one_a_picture(shared, pictures, order)
        if says.all():
            spread.append((shared, 0.0))
            continue
        area = told_by_question([features[row] for row in rows], says)
        chance = chance_of_area(area, int(says.sum()), int((~says).sum()), config.honest_area)
        spread.append((shared, min(1.0, chance * len(repeated))))
    spread = [(shared, chance) for shared, chance in spread if chance <= alpha]
    # Where half of all answers hold one sentence or the other that goes with no question, that is how answers are here.
    repeating = {pictures[index] for shared, _ in spread for index in shared.holders}
    if len(repeating) > config.most_share * count:
        return []
    return [
        replace(shared, holders=tuple(chosen[index] for index in shared.holders), p_value=chance)
        for shared, chance in spread
        if _alone(shared, answers) >= config.alone_share
    ]


def _is_sentence(shared: Shared, answers: Sequence[str], config: UnaskedConfig) -> bool:
    """Whether the phrase is a sentence, or several, in nearly all of its answers: a frame goes on differently."""
    whole = sum(stands_alone(answers[index], shared.phrase.words) for index in shared.holders)
    return whole >= config.sentence_share * len(shared.holders)


def _one_a_picture(shared: Shared, pictures: Sequence[str], order: Sequence[int]) -> tuple[list[int], np.ndarray]:
    """One turn a picture, and whether it holds the phrase (bool ``[N]``); one that does, where there is one.

    What is asked about one picture is one observation.
    """
    holders = set(shared.holders)
    rows: dict[str, int] = {}
    for row in order:
        if row in holders or pictures[row] not in rows:
            rows[pictures[row]] = row
    found = sorted(rows.values())
    return found, np.array([row in holders for row in found])


def _alone(shared: Shared, answers: Sequence[str]) -> float:
    """Of the answers that hold the phrase or a variant of it the share that hold it as it is.

    A variant has more than half of the words in one piece. The most frequent such piece counts.
    """
    words, holders = shared.phrase.words, set(shared.holders)
    size = len(words) // 2 + 1
    pieces = [words[start : start + size] for start in range(len(words) - size + 1)]
    others = [
        f" {' '.join(phrase_words(answer))} "
        for index, answer in enumerate(answers)
        if index not in holders and not holds(answer, words)
    ]
    variants = max(sum(f" {' '.join(piece)} " in text for text in others) for piece in pieces)
    return len(holders) / (len(holders) + variants)
