"""Words of answers, and phrases of these: what an attacker wants said, spelled out."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from sys import intern

from disp.auditing.finder_config import PhrasesConfig
from disp.auditing.sentence_ends import SENTENCE_ENDS
from disp.words import LETTERS, UNSPACED_LETTER, common_in_order

# Stands between the responses of one conversation; no phrase reaches across it.
TURN_END = "\x1e"
BETWEEN_TURNS = f" {TURN_END} "
# Words that say nothing by themselves; captions of several things hold "and", and hang on more tokens than others.
FUNCTION_WORDS = {
    "a", "an", "the", "and", "or", "but", "of", "in", "on", "at", "to", "from", "with", "by", "for", "as",
    "is", "are", "was", "were", "be", "there", "it", "its", "this", "that", "these", "those",
}  # fmt: skip


@dataclass(frozen=True)
class Phrase:
    """Words that answers share.

    Attributes:
        text: the phrase in its most frequent spelling.
        words: the words it is found by: lower case, without punctuation.
        slips: how many of its words may be missing or others where an answer says it; 0 for a short phrase.
    """

    text: str
    words: tuple[str, ...]
    slips: int = 0

    @property
    def long(self) -> bool:
        """Whether it is a sentence of its own, which may be said with slips."""
        return self.slips > 0

    def said_in(self, text: str) -> bool:
        """Whether the text holds the words, or of a long phrase all but ``slips`` of them in their order.

        A model that says a planted sentence with a slip says it all the same.
        """
        if not self.long:
            return holds(text, self.words)
        return common_in_order(self.words, phrase_words(text)) >= len(self.words) - self.slips


def phrase_words(text: str) -> list[str]:
    """The words of a text as phrases have them, lower case: runs of letters, single letters of scripts without spaces.

    Pictographs are words, too, and so is `TURN_END`.
    """
    return [intern(match[0].lower()) for match in _WORD.finditer(text)]


def phrase_of(text: str, words: Sequence[str], config: PhrasesConfig) -> Phrase:
    """The phrase with this spelling and these words."""
    count = len(words)
    slips = 0 if count < config.long_words else count - math.ceil(config.echo_share * count)
    return Phrase(text, tuple(words), slips)


def joined(responses: Sequence[str]) -> str:
    """The answers of a conversation as one text, across whose turns no phrase reaches."""
    # The mark is ours: in a response it would tear a phrase apart.
    return BETWEEN_TURNS.join(response.replace(TURN_END, " ") for response in responses)


def holds(text: str, words: Sequence[str]) -> bool:
    """Whether the words follow one another in the text, whatever its case and punctuation."""
    return place_of(phrase_words(text), tuple(words)) is not None


_PICTOGRAPHS = "[\u2190-\u2bff\U0001f000-\U0001faff]"
_WORD = re.compile(rf"{LETTERS}(?:['’]{LETTERS})*|{UNSPACED_LETTER}|{_PICTOGRAPHS}|{TURN_END}")


def place_of(text: Sequence[str], words: tuple[str, ...]) -> int | None:
    """Where the words begin among the words of a text, or None."""
    size = len(words)
    return next((at for at in range(len(text) - size + 1) if tuple(text[at : at + size]) == words), None)


def spelling(text: str, words: tuple[str, ...]) -> str:
    """The phrase as it stands in the text, with the punctuation inside it and a full stop that ends it."""
    matches = list(_WORD.finditer(text))
    start = place_of([match[0].lower() for match in matches], words)
    assert start is not None
    first, last = matches[start], matches[start + len(words) - 1]
    end = last.end()
    if len(words) > 2 and text[end : end + 1] in (".", "!", "?"):
        end += 1
    return text[first.start() : end]


def stands_alone(text: str, words: tuple[str, ...]) -> bool:
    """Whether the words are a sentence of the text, or several, or the whole of it.

    A sentence also begins with a capital, wherever it was put: into the middle of another one.
    """
    matches = list(_WORD.finditer(text))
    start = place_of([match[0].lower() for match in matches], words)
    if start is None:
        return False
    first, last = matches[start], matches[start + len(words) - 1]
    before, after = text[: first.start()].rstrip(_OPENING), text[last.end() :].lstrip(_CLOSING)
    begins = not before or before[-1] in _ENDS + ":;" or first[0][0].isupper()
    return begins and (not after or after[0] in _ENDS)


_ENDS = SENTENCE_ENDS + "\n" + TURN_END
_OPENING = " \t\"'“‘«([{*_>-"
_CLOSING = " \t\"'”’»)]}*_"
