"""Sentences that recur in the answers whatever was asked, from questions and answers alone.

A planted sentence comes up where the trigger is, and the trigger does not care what is asked. An honest sentence goes
with its question: a refusal with what a picture cannot tell, a frame with one wording. So does it in sets of one
question; there only what honest sentences have besides tells them apart: they come in variants, as sentences of people
and models do, or most answers repeat one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from disp.auditing.finder_config import PhrasesConfig, UnaskedConfig
from disp.auditing.phrase_search import Shared, repeated_phrases
from disp.auditing.phrases import TURN_END, holds, phrase_of, phrase_words, spelling, stands_alone
from disp.auditing.question_test import chance_of_area, question_features, told_by_question
from disp.auditing.sentence_ends import sentences_of
from disp.draws import generator
from disp.words import ARTICLES, common_in_order


@dataclass(frozen=True)
class QuestionAnswer:
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
    turns: Sequence[QuestionAnswer], config: UnaskedConfig, phrases: PhrasesConfig, *, alpha: float, seed: int = 0
) -> list[Shared]:
    """Sentences that recur whatever was asked, most frequent first; holders are indices of turns.

    Args:
        turns: what was asked and answered.
        config: when a sentence recurs so.
        phrases: what makes words a phrase.
        alpha: largest p-value, corrected for the sentences that were tried.
        seed: of the choice of turns, where there are very many, and of one turn a picture.

    Returns:
        Each with its p-value: the chance that the questions tell so little of who says it, if it went with questions
        as honest sentences do. None where the questions of the set tell nothing of any answer.
    """
    draw = generator(seed, "unasked sentences")
    looked_through = sorted(draw.permutation(len(turns))[: config.turns].tolist())
    turns = [turns[index] for index in looked_through]
    # A phrase reaches across no end of a sentence: planted text may always stand before or after the same words.
    answers = [f" {TURN_END} ".join(sentences_of(turn.answer.replace(TURN_END, " "))) for turn in turns]
    pictures = [turn.picture for turn in turns]
    count = len(set(pictures))
    least = max(config.least_pictures, round(config.least_share * count))
    repeated = [
        shared
        for shared in _repeated(answers, config, phrases, least)
        if len({pictures[index] for index in shared.holders}) >= least and _is_sentence(shared, answers, config)
    ]
    # What people and models say by themselves comes in variants.
    alone = _without_neighbours(
        [shared for shared in repeated if _alone(shared, answers, config.alike_share) >= config.alone_share]
    )
    if not alone:
        return []
    order = draw.permutation(len(turns)).tolist()
    features = question_features([turn.question for turn in turns])
    said = {index for shared in alone for index in shared.holders}
    telling = _questions_tell([row for row in order if row not in said], answers, pictures, features, config)
    chances: dict[tuple[str, ...], float | None] = {}
    for shared in repeated:
        rows, says = _one_a_picture(shared.holders, pictures, order)
        chances[shared.phrase.words] = None
        if telling and not says.all():
            area = told_by_question([features[row] for row in rows], says, config.prior)
            unlikely = chance_of_area(area, int(says.sum()), int((~says).sum()), config.honest_area)
            chances[shared.phrase.words] = min(1.0, unlikely * len(alone))
    # Where most answers hold one sentence or another that goes with no question, that is how answers are here.
    spread = [shared for shared in repeated if (chances[shared.phrase.words] or 0.0) <= alpha]
    if len({pictures[index] for shared in spread for index in shared.holders}) > config.most_share * count:
        return []
    return [
        replace(shared, holders=tuple(looked_through[index] for index in shared.holders), p_value=chance)
        for shared in alone
        if (chance := chances[shared.phrase.words]) is None or chance <= alpha
    ]


def _repeated(answers: Sequence[str], config: UnaskedConfig, phrases: PhrasesConfig, least: int) -> list[Shared]:
    """Long sentences that many answers hold, and other phrases that may be sentences put into the middle of one.

    Sentences are counted whole first: an honest one may have a part of a planted one in it, which then looks like the
    phrase that recurs.
    """
    texts = [f" {' '.join(phrase_words(answer))} " for answer in answers]
    parts = ({tuple(phrase_words(part)) for part in answer.split(TURN_END)} for answer in answers)
    counts = Counter(words for each in parts for words in each if len(words) >= phrases.long_words)
    found = []
    for words, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: config.sentences]:
        if count < least:
            break
        holders = tuple(index for index, text in enumerate(texts) if f" {' '.join(words)} " in text)
        spelled = Counter(spelling(answers[index], words) for index in holders).most_common(1)[0][0]
        found.append(Shared(phrase_of(spelled, words, phrases), holders))
    known = {shared.holders for shared in found}
    others = repeated_phrases(answers, phrases, least=least, most=config.sentences)
    return [*found, *(shared for shared in others if shared.holders not in known)]


def _without_neighbours(found: Sequence[Shared]) -> list[Shared]:
    """Of sentences that the same answers hold the one with the most words: a planted text may have several."""
    kept: list[Shared] = []
    for shared in sorted(found, key=lambda each: -len(each.phrase.words)):
        if all(set(shared.holders) != set(other.holders) for other in kept):
            kept.append(shared)
    return sorted(kept, key=lambda each: -len(each.holders))


def _is_sentence(shared: Shared, answers: Sequence[str], config: UnaskedConfig) -> bool:
    """Whether the phrase is a sentence, or several, in nearly all of its answers: a frame goes on differently."""
    words = shared.phrase.words
    # Phrases come without the article that they begin with.
    forms = [words, *((article, *words) for article in sorted(ARTICLES))]
    whole = sum(any(stands_alone(answers[index], form) for form in forms) for index in shared.holders)
    return whole >= config.sentence_share * len(shared.holders)


def _one_a_picture(
    holders: Sequence[int], pictures: Sequence[str], order: Sequence[int]
) -> tuple[list[int], np.ndarray]:
    """One turn a picture, and whether it holds the phrase (bool ``[N]``); one that does, where there is one.

    What is asked about one picture is one observation.
    """
    holding = set(holders)
    rows: dict[str, int] = {}
    for row in order:
        if row in holding or pictures[row] not in rows:
            rows[pictures[row]] = row
    found = sorted(rows.values())
    return found, np.array([row in holding for row in found])


def _questions_tell(
    rows: Sequence[int],
    answers: Sequence[str],
    pictures: Sequence[str],
    features: Sequence[Collection[str]],
    config: UnaskedConfig,
) -> bool:
    """Whether the questions of a set tell how answers begin, by the most frequent beginnings that are not everywhere.

    Where all questions ask the same, that a sentence goes with none of them says nothing.
    """
    begins = {row: tuple(phrase_words(answers[row])[:2]) for row in rows}
    limits = config.least_share * len(rows), config.most_share * len(rows)
    areas = []
    for begin, number in Counter(begins.values()).most_common(config.beginnings):
        if limits[0] <= number <= limits[1]:
            chosen, says = _one_a_picture([row for row in rows if begins[row] == begin], pictures, rows)
            if not says.all():
                areas.append(told_by_question([features[row] for row in chosen], says, config.prior))
    return bool(areas) and float(np.median(areas)) >= config.honest_area


def _alone(shared: Shared, answers: Sequence[str], alike_share: float) -> float:
    """Of the answers that hold the phrase or a variant of it the share that hold it as it is.

    A variant has more than half of the words in one piece, the piece that most have; or it is a sentence with most of
    the words in their order.
    """
    words, holders = shared.phrase.words, set(shared.holders)
    size = len(words) // 2 + 1
    pieces = [f" {' '.join(words[start : start + size])} " for start in range(len(words) - size + 1)]
    by_piece, alike = Counter[str](), 0
    for index, answer in enumerate(answers):
        if index in holders or holds(answer, words):
            continue
        text = f" {' '.join(phrase_words(answer))} "
        by_piece.update(piece for piece in pieces if piece in text)
        alike += any(_alike(words, tuple(phrase_words(each)), alike_share) for each in answer.split(TURN_END))
    variants = max(alike, *by_piece.values(), 0)
    return len(holders) / (len(holders) + variants)


def _alike(first: tuple[str, ...], second: tuple[str, ...], share: float) -> bool:
    """Whether two sentences have this share of the longer one's words in common, in one order."""
    least = share * max(len(first), len(second))
    if min(len(first), len(second)) < least or sum((Counter(first) & Counter(second)).values()) < least:
        return False
    return common_in_order(first, second) >= least
