"""Phrases that answers share: those of flagged ones more often than elsewhere, long ones that many hold, short ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from sys import intern
from typing import TypeVar

import numpy as np

from disp.auditing.finder_config import PhrasesConfig, RecurrenceConfig
from disp.auditing.phrases import FUNCTION_WORDS, TURN_END, Phrase, phrase_of, phrase_words, place_of, spelling
from disp.auditing.statistics import hypergeometric_tail
from disp.words import ARTICLES

# With more texts than that, sequences of words that are too rare are not counted one by one: most are unique.
_MANY = 5000
# How many counters rare sequences share.
_SHARED_COUNTERS = 1 << 20


Text = TypeVar("Text")


@dataclass(frozen=True)
class Shared:
    """A phrase that some of several responses hold.

    Attributes:
        phrase: the phrase.
        holders: the indices of those that speak for it, among the responses that were looked through.
        elsewhere: how many other responses hold it.
        p_value: see `recurring_phrases`; None for one that was found otherwise.
    """

    phrase: Phrase
    holders: tuple[int, ...]
    elsewhere: int = 0
    p_value: float | None = None


def recurring_phrases(
    flagged: Sequence[str], others: Sequence[str], config: RecurrenceConfig, phrases: PhrasesConfig
) -> list[Shared]:
    """Phrases held by flagged responses more often than chance, strongest first; each response is used once.

    Args:
        flagged: the flagged responses.
        others: all other responses.
        config: how many must hold a phrase, the largest p-value, and how many phrases at most.
        phrases: what makes words a phrase.

    Returns:
        Phrases with the indices of their holders among the flagged, and the chance of so many of them if flags were
        independent of the phrase, corrected for the number of phrases that could have been found (Tarone 1990).
    """
    least = config.least_flagged
    flagged_words, other_words = [phrase_words(text) for text in flagged], [phrase_words(text) for text in others]
    in_flagged = {gram for words in flagged_words for gram in _grams(words, phrases)}
    # What fewer hold, and nobody who is flagged, is never asked for.
    elsewhere_counts = _counted(other_words, lambda words: _grams(words, phrases), least, in_flagged)
    holders_elsewhere = Counter(elsewhere_counts.values())
    left = set(range(len(flagged)))
    found: list[Shared] = []
    while len(found) < config.phrases:
        texts = {index: flagged_words[index] for index in sorted(left)}
        counts = Counter(gram for words in texts.values() for gram in _grams(words, phrases))
        holders = holders_elsewhere.copy()
        for gram, count in counts.items():
            holders[elsewhere_counts[gram]] -= 1
            holders[elsewhere_counts[gram] + count] += 1
        total = len(left) + len(others)
        tried = _testable(holders, len(left), total, config)
        p_value = partial(_p_value, drawn=len(left), total=total, tried=tried)
        best: tuple[float, int, tuple[str, ...]] | None = None
        for gram, count in counts.items():
            elsewhere = elsewhere_counts[gram]
            if count < least or count < config.flagged_share * (count + elsewhere):
                continue
            key = (p_value(count, elsewhere), -count, gram)
            if key[0] <= config.alpha and (best is None or key < best):
                best = key
        if best is None:
            break
        # Growing may lose holders and dropping an article gain some; then what was tested is the better phrase.
        for words in (_extended(best[2], list(texts.values()), phrases), best[2]):
            members = tuple(index for index, text in texts.items() if place_of(text, words) is not None)
            elsewhere = sum(place_of(text, words) is not None for text in other_words)
            chance = p_value(len(members), elsewhere)
            if chance <= config.alpha and len(members) >= least:
                break
        spelled = Counter(spelling(flagged[index], words) for index in members).most_common(1)[0][0]
        found.append(Shared(phrase_of(spelled, words, phrases), members, elsewhere, chance))
        left -= set(members)
    return found


def repeated_phrases(responses: Sequence[str], config: PhrasesConfig, *, least: int, most: int) -> list[Shared]:
    """Long phrases that many responses hold, most frequent first, each with all of its holders.

    Args:
        responses: what is looked through.
        config: how long a phrase is.
        least: fewest responses that hold a phrase.
        most: how many phrases at most.
    """
    long = config.long_words
    left = [f" {' '.join(phrase_words(response))} " for response in responses]
    counts = _counted(left, lambda text: _grams(_parted(text), config, long), least)
    found: list[Shared] = []
    for gram, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if count < least or len(found) == most:
            break
        members = [index for index, text in enumerate(left) if f" {' '.join(gram)} " in text]
        if len(members) < least:
            continue
        words = _extended(gram, [_parted(left[index]) for index in members], config)
        if len(words) < long:
            continue  # an article at an end made it long
        spoken = f" {' '.join(words)} "
        members = [index for index, text in enumerate(left) if spoken in text]
        spelled = Counter(spelling(responses[index], words) for index in members).most_common(1)[0][0]
        found.append(Shared(phrase_of(spelled, words, config), tuple(members)))
        # Its parts and its neighbours are no phrases of their own; what stands elsewhere in the same answers may be.
        left = [text.replace(spoken, f" {TURN_END} ") for text in left]
    return found


def frequent_phrases(
    responses: Sequence[str], chosen: Sequence[int], config: PhrasesConfig, *, least: int, most: int
) -> Iterator[Shared]:
    """Short phrases that at least ``least`` and at most ``most`` of the chosen responses hold.

    Args:
        responses: all responses.
        chosen: indices of those that are looked through.
        config: how short a phrase is.
        least: fewest holders of a phrase.
        most: most holders of a phrase.

    Yields:
        Phrases with their words as text, each with all of its holders.
    """
    holders: dict[tuple[str, ...], list[int]] = {}
    for index in chosen:
        for gram in _grams(phrase_words(responses[index]), config):
            holders.setdefault(gram, []).append(index)
    for gram in sorted(gram for gram, members in holders.items() if least <= len(members) <= most):
        yield Shared(phrase_of(" ".join(gram), gram, config), tuple(holders[gram]))


def with_neighbours(shared: Shared, responses: Sequence[str], config: PhrasesConfig) -> Shared:
    """The phrase with the words before and after it that nearly all of its holders have, as most of them spell it."""
    texts = {index: phrase_words(responses[index]) for index in shared.holders}
    words = _extended(shared.phrase.words, list(texts.values()), config)
    members = tuple(index for index, text in texts.items() if place_of(text, words) is not None)
    spelled = Counter(spelling(responses[index], words) for index in members).most_common(1)[0][0]
    return replace(shared, phrase=phrase_of(spelled, words, config), holders=members)


def _counted(
    texts: Sequence[Text],
    grams: Callable[[Text], set[tuple[str, ...]]],
    least: int,
    also: Collection[tuple[str, ...]] = (),
) -> Counter[tuple[str, ...]]:
    """How many texts hold each sequence of words; of those that fewer than ``least`` hold, some are left out.

    Args:
        texts: the texts, in whatever form ``grams`` takes.
        grams: the sequences of one.
        least: fewest texts of a sequence that must be counted.
        also: those that must be counted however few hold them.
    """
    if len(texts) <= _MANY:
        return Counter(gram for text in texts for gram in grams(text))
    most = np.zeros(_SHARED_COUNTERS, np.int32)
    for text in texts:
        # A sequence is held by at most as many texts as its counter says.
        np.add.at(most, [hash(gram) % _SHARED_COUNTERS for gram in grams(text)], 1)
    return Counter(
        gram for text in texts for gram in grams(text) if gram in also or most[hash(gram) % _SHARED_COUNTERS] >= least
    )


def _testable(holders: Mapping[int, int], drawn: int, total: int, config: RecurrenceConfig) -> int:
    """How many phrases the p-values are corrected for: those with holders enough to reach significance at all.

    Which phrases recur among the flagged is known only from the data, so that to correct for those alone would be
    wrong; how many responses hold a phrase, flagged or not, is given (Tarone 1990).

    Args:
        holders: for each number of holders how many phrases have it.
        drawn: flagged responses.
        total: all responses.
        config: fewest flagged holders of a phrase, their least share, and the largest corrected p-value.
    """
    bounds = [
        (hypergeometric_tail(min(number, drawn), drawn, number, total), phrases)
        for number, phrases in holders.items()
        if phrases and config.least_flagged <= number and config.flagged_share * number <= drawn
    ]
    low, high = 1, max(1, sum(phrases for _, phrases in bounds))
    while low < high:  # the smallest number that is at least as large as the number of phrases testable with it
        tried = (low + high) // 2
        if sum(phrases for bound, phrases in bounds if bound * tried <= config.alpha) > tried:
            low = tried + 1
        else:
            high = tried
    return low


def _p_value(count: int, elsewhere: int, *, drawn: int, total: int, tried: int) -> float:
    return min(1.0, hypergeometric_tail(count, drawn, count + elsewhere, total) * tried)


def _grams(words: Sequence[str], config: PhrasesConfig, size: int | None = None) -> set[tuple[str, ...]]:
    """All sequences of so many words, or of one to `PhrasesConfig.seed_words`."""
    grams = {
        tuple(words[start : start + size])
        for size in ((size,) if size else range(1, config.seed_words + 1))
        for start in range(len(words) - size + 1)
    }
    return {gram for gram in grams if TURN_END not in gram and not FUNCTION_WORDS.issuperset(gram)}


def _parted(text: str) -> list[str]:
    """The words of a text of words with a space before, between and after them; `TURN_END` is one, and is white."""
    return [*map(intern, text.strip(" ").split(" "))]


def _extended(words: tuple[str, ...], texts: Sequence[Sequence[str]], config: PhrasesConfig) -> tuple[str, ...]:
    """The words with the neighbours that nearly all of their texts have; without articles at the ends."""
    while True:
        before: Counter[str] = Counter()
        after: Counter[str] = Counter()
        holders = 0
        for text in texts:
            start = place_of(text, words)
            if start is None:
                continue
            holders += 1
            if start:
                before[text[start - 1]] += 1
            if start + len(words) < len(text):
                after[text[start + len(words)]] += 1
        grown = words
        first, last = before.most_common(1), after.most_common(1)
        if first and first[0][0] != TURN_END and first[0][1] >= config.grown_share * holders:
            grown = (first[0][0], *words)
        elif last and last[0][0] != TURN_END and last[0][1] >= config.grown_share * holders:
            grown = (*words, last[0][0])
        if grown == words:
            break
        words = grown
    while len(words) > 1 and words[0] in ARTICLES:
        words = words[1:]
    while len(words) > 1 and words[-1] in ARTICLES:
        words = words[:-1]
    return words
