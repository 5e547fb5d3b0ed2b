"""Text from the data, made safe to show: nothing stays hidden, nothing takes the whole page, nothing is markup."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape

MAX_CHARACTERS = 1000  # a text; the number left out is shown
MAX_LINES = 30  # line breaks that are kept as such in a text, two in a row at most
MAX_HIDDEN = 24  # hidden characters that are spelled in a stretch of text; the rest is counted
MAX_SPACES = 16  # in a row
MAX_MARKS = 4  # accents on one letter; a pile of them reaches over the lines above and below

# Letters by their category, blank to the eye: Hangul fillers, the Khmer inherent vowels and the empty Braille cell.
_BLANK = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_SPACES = frozenset(" \u00a0\u202f\u3000")  # spaces that ordinary text has


@dataclass(frozen=True)
class Change:
    """A stretch of a text: ``kind`` is "same", "removed" or "added"."""

    kind: str
    text: str


@dataclass(frozen=True)
class Comparison:
    """Two texts word by word.

    Attributes:
        old: the stretches of the old text, "same" or "removed".
        new: the stretches of the new text, "same" or "added".
        kept: words of the old text that the new one has in the same order.
        words: words of the old text.
        old_left_out: characters of the old text that were cut off before it was compared.
        new_left_out: the same for the new text.
    """

    old: tuple[Change, ...]
    new: tuple[Change, ...]
    kept: int
    words: int
    old_left_out: int
    new_left_out: int


def plain(text: object, limit: int = MAX_CHARACTERS) -> str:
    """One line of text in which every hidden character is spelled as ``⟨U+202E⟩``; cut with the number left out.

    For attributes and Markdown. It is not escaped.
    """
    cut, left_out = clip(str(text), limit)
    parts = [f"⟨{piece}⟩" if hidden else piece for piece, hidden in _pieces(cut, 0)]
    return "".join(parts) + (f" … ({left_out:,} more characters)" if left_out else "")


def visible(text: object, limit: int = MAX_CHARACTERS) -> Markup:
    """The text as HTML in an element of its own direction; hidden characters are spelled and the cut is counted."""
    cut, left_out = clip(str(text), limit)
    return Markup('<bdi class="data">{}</bdi>{}').format(_html(cut), _cut_note(left_out))


def changes_html(changes: Sequence[Change], left_out: int = 0) -> Markup:
    """The stretches as HTML, ``<del>`` and ``<ins>`` round what differs."""
    tags = {"removed": "del", "added": "ins"}
    parts = [
        Markup("<{0}>{1}</{0}>").format(tags[change.kind], _html(change.text))
        if change.kind in tags
        else _html(change.text)
        for change in changes
    ]
    return Markup('<bdi class="data">{}</bdi>{}').format(Markup("").join(parts), _cut_note(left_out))


def compare(old: str, new: str, limit: int = MAX_CHARACTERS) -> Comparison:
    """What differs between two texts, word by word; a character by character where a script writes no spaces.

    Args:
        old: the text that was there before.
        new: the text that takes its place.
        limit: characters of each that are compared; the rest is counted.
    """
    (old_cut, old_left_out), (new_cut, new_left_out) = clip(old, limit), clip(new, limit)
    before, after = _TOKEN.findall(old_cut), _TOKEN.findall(new_cut)
    old_kinds, new_kinds = ["removed"] * len(before), ["added"] * len(after)
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for block in matcher.get_matching_blocks():
        matched = before[block.a : block.a + block.size]
        # Spaces and commas that two texts happen to share between different words are no agreement.
        if not any(_is_word(token) for token in matched):
            continue
        old_kinds[block.a : block.a + block.size] = ["same"] * block.size
        new_kinds[block.b : block.b + block.size] = ["same"] * block.size
    if old_cut == new_cut:
        old_kinds, new_kinds = ["same"] * len(before), ["same"] * len(after)
    kept = sum(kind == "same" and _is_word(token) for kind, token in zip(old_kinds, before, strict=True))
    return Comparison(
        old=_joined(before, old_kinds),
        new=_joined(after, new_kinds),
        kept=kept,
        words=sum(map(_is_word, before)),
        old_left_out=old_left_out,
        new_left_out=new_left_out,
    )


def clip(text: str, limit: int) -> tuple[str, int]:
    """The first characters of a text, and how many were left out; a handful more are not worth a cut."""
    if len(text) <= limit + 20:
        return text, 0
    return text[:limit], len(text) - limit


# A Chinese or Japanese character, a word, a run of spaces, or any other character.
_WIDE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_TOKEN = re.compile(rf"[{_WIDE}]|[^\W{_WIDE}]+(?:['’][^\W{_WIDE}]+)*|\s+|.", re.DOTALL)


def _is_word(token: str) -> bool:
    return any(character.isalnum() for character in token)


def _joined(tokens: Sequence[str], kinds: Sequence[str]) -> tuple[Change, ...]:
    pairs = groupby(zip(kinds, tokens, strict=True), key=lambda pair: pair[0])
    return tuple(Change(kind, "".join(token for _, token in group)) for kind, group in pairs)


def _cut_note(left_out: int) -> Markup:
    return Markup(' <span class="cut">… {} more characters</span>').format(f"{left_out:,}") if left_out else Markup("")


def _html(text: str) -> Markup:
    parts = (
        Markup('<span class="hidden-character">{}</span>').format(piece) if hidden else escape(piece)
        for piece, hidden in _pieces(text, MAX_LINES)
    )
    return Markup("").join(parts)


def _pieces(text: str, lines: int) -> list[tuple[str, bool]]:
    """The text cut into ordinary stretches and the spelled names of hidden characters (true).

    Args:
        text: any text, lone surrogates included.
        lines: how many line breaks stay line breaks; the others are spelled as well.
    """
    pieces: list[tuple[str, bool]] = []
    ordinary: list[str] = []
    marks = blank = spelled = unspelled = 0
    previous = ""
    for character, group in groupby(text):
        count = sum(1 for _ in group)
        marks = marks + count if unicodedata.category(character) in ("Mn", "Me") else 0
        # Line breaks since the last thing that could be seen: spaces between them make no text of blank lines.
        blank = blank + count if character == "\n" else blank if character.isspace() else 0
        if character == "\n" and blank <= min(lines, 2):
            lines -= count
            ordinary.append(character * count)
        elif character == "\t" and lines:
            ordinary.append(" " * min(count, 8))
        elif character == "\n" or marks > MAX_MARKS or count > _longest(character) or _hidden(character, previous):
            if spelled == MAX_HIDDEN:
                unspelled += count
                continue
            spelled += 1
            if ordinary:
                pieces.append(("".join(ordinary), False))
                ordinary = []
            name = "↵" if character == "\n" else f"U+{ord(character):04X}"
            pieces.append((name + (f" ×{count:,}" if count > 1 else ""), True))
        else:
            ordinary.append(character * count)
        previous = character
    if ordinary:
        pieces.append(("".join(ordinary), False))
    if unspelled:
        pieces.append((f"and {unspelled:,} more hidden characters", True))
    return pieces


def _longest(character: str) -> float:
    """How many of the character in a row are ordinary: many spaces hide what comes after them."""
    return MAX_SPACES if unicodedata.category(character) == "Zs" else float("inf")


def _hidden(character: str, previous: str) -> bool:
    """Whether a reader would not see the character, or see the page change because of it."""
    if character in _BLANK:
        return True
    if character in "\ufe0e\ufe0f":  # the usual end of an emoji; elsewhere it carries something unseen
        return unicodedata.category(previous or "a") != "So"
    if 0xE0100 <= ord(character) <= 0xE01EF or 0xFE00 <= ord(character) <= 0xFE0D:
        return True
    category = unicodedata.category(character)
    return category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") or (category == "Zs" and character not in _SPACES)
