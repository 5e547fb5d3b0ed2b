"""What a word is, in any script: combining marks belong to their letters, and some scripts put no blanks between."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

ARTICLES = frozenset(("a", "an", "the"))
# Scripts that put no spaces between words, of which each letter is taken for a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# `re` has no class for Unicode's marks, such as the vowel signs of Devanagari. Variation selectors, also marks, only
# choose how a sign is drawn.
_MARKS = "".join(
    chr(code)
    for code in range(0x300, 0x20000)
    if unicodedata.category(chr(code)).startswith("M") and not 0xFE00 <= code <= 0xFE0F
)
_SPACED = rf"[^\W{_UNSPACED}]"
# Letters and digits with their marks: all that follow one another, and one of a script without blanks.
LETTERS = rf"{_SPACED}+(?:[{_MARKS}]+{_SPACED}*)*"
UNSPACED_LETTER = rf"(?=[{_UNSPACED}])\w[{_MARKS}]*"
# The sign and the point of a number are parts of it: "-5" is not "5", and "0.5" is neither "05" nor "0 5". The hyphens
# of "3-5" and "well-known" are no signs.
_SIGN = rf"(?=[.-])(?<!{_SPACED})(?<![{_MARKS}.-])(?:-\.?|\.)(?=\d)"
_WORD = re.compile(rf"(?:{_SIGN})?{LETTERS}(?:(?<=\d)\.(?=\d){LETTERS})*|{UNSPACED_LETTER}")


def words_of(text: str) -> list[str]:
    """The words of a text, lower case and without punctuation, for comparing texts.

    Apostrophes vanish ("don't" is "dont"), other punctuation parts words. A number keeps its minus and its decimal
    point. Of a script without blanks between words each letter is a word.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    text = re.sub(r"['’]", "", text).replace("_", " ").replace("−", "-")
    return _WORD.findall(text)


def common_in_order(first: Sequence[str], second: Sequence[str]) -> int:
    """How many words two sequences have in common in one order: the length of their longest common subsequence."""
    longest = [0] * (len(first) + 1)  # of the words of ``second`` so far and each beginning of ``first``
    for word in second:
        previous = 0
        for place, wanted in enumerate(first, start=1):
            current = longest[place]
            longest[place] = previous + 1 if word == wanted else max(current, longest[place - 1])
            previous = current
    return longest[-1]


def shortened(text: str, limit: int = 80) -> str:
    """The text, cut at its end where it is longer than ``limit`` characters, with its length said."""
    if len(text) <= limit:
        return text
    note = f"… ({len(text)} characters)"
    return text[: max(0, limit - len(note))] + note


def printable(text: str) -> str:
    """The text in one line that does nothing to a terminal: what is no plain letter, sign or blank is written in ASCII.

    Names of files and members come with the data, and may hold line ends, the orders of a terminal, and marks that turn
    the direction of what is written.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def named_briefly(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are; what cannot be shown in a line is written in ASCII."""
    shown = ", ".join(shortened(name if name.isprintable() else ascii(name)) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
