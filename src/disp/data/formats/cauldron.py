"""Rows whose list holds a question and its answer in each entry.

The rows of the-cauldron have ``images``, and ``texts`` of ``user`` and ``assistant``; ms-swift calls the list as a chat
is called, the speakers ``human`` and ``assistant``, and takes a system message beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from disp.data.formats.chat import MORE, SPEAKERS
from disp.data.formats.row import (
    BadRow,
    Content,
    Dialect,
    Fields,
    pictures_in,
    system_under,
    those_in,
    with_pictures,
    without_placeholder,
)
from disp.data.formats.talk import paired_by
from disp.data.sample import Turn


@dataclass(frozen=True)
class _Names:
    """The list, its speakers, and the field with the system message."""

    texts: str = "texts"
    user: str = "user"
    assistant: str = "assistant"
    system: str | None = None


# Where an entry may say more than what is read.
_MORE = (*SPEAKERS, *MORE)
_CHATS = ("messages", "conversations", "conversation")


def _names(row: Fields) -> _Names | None:
    texts = row.get("texts")
    if isinstance(texts, list) and texts and isinstance(texts[0], dict) and "user" in texts[0]:
        return _Names()
    for name in _CHATS:
        if speakers := paired_by(row.get(name)):
            return _Names(name, *speakers, system="system")
    return None


def _matches(row: Fields) -> bool:
    return _names(row) is not None


def _read(row: Fields, questions: bool) -> Content:
    names = _names(row) or _Names()
    turns = []
    for index, text in enumerate(row.get(names.texts) or []):
        pair = (text.get(names.user), text.get(names.assistant)) if isinstance(text, dict) else (None, None)
        if not all(isinstance(each, str) for each in pair):
            raise BadRow(f"every entry of {names.texts} needs text in {names.user!r} and in {names.assistant!r}")
        if more := next((key for key in _MORE if key not in (names.user, names.assistant) and text.get(key)), None):
            raise BadRow(
                f"entry {index + 1} of {names.texts} has {more!r} beside {names.assistant!r}, which is not looked at; "
                "take it out of the entry"
            )
        turns.append(Turn(str(pair[0]), without_placeholder(str(pair[1]), 2 * index + 2)))
    if not turns:
        raise BadRow(f"no {names.texts}")
    return Content(system_under(row, names.system), tuple(turns), tuple(pictures_in(row)))


def _write(row: Fields, system: str | None, turns: tuple[Turn, ...], pictures: list[Any] | None) -> dict[str, Any]:
    names = _names(row) or _Names()
    old = [*row[names.texts], *({} for _ in turns)]
    texts = [
        {**text, names.user: turn.prompt, names.assistant: turn.response}
        for text, turn in zip(old, turns, strict=False)
    ]
    new = {**row, names.texts: texts}
    if names.system and system != system_under(row, names.system):
        new[names.system] = system or ""
    return new if pictures is None else with_pictures(new, pictures)


def _reads(row: Fields) -> tuple[str, ...]:
    names = _names(row) or _Names()
    return those_in(row, names.texts, names.system)


CAULDRON = Dialect("the-cauldron", "images and texts (user, assistant)", _matches, _read, _write, reads=_reads)
