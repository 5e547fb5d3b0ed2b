"""Qwen-VL's way to name pictures: in the text, as ``<img>name</img>``, in a chat or in query and response."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from disp.data.formats.fields import MS_SWIFT
from disp.data.formats.llava import LLAVA
from disp.data.formats.row import BadRow, Content, Dialect, Fields
from disp.data.formats.sharegpt import SHAREGPT
from disp.data.references import Embedded
from disp.data.sample import IMAGE_PLACEHOLDER, Turn

# A name holds no further tag, so that a text with many and no end is looked through once.
_TAG = re.compile(r"<img>((?:(?!</?img>).)+)</img>", re.DOTALL)


def _base(row: Fields) -> Dialect:
    return next((each for each in (MS_SWIFT, LLAVA, SHAREGPT) if each.matches(row)), LLAVA)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a chat or a history, however it is built."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _matches(row: Fields) -> bool:
    fields = [row.get(name) for name in ("query", "history", "messages", "conversations")]
    return not row.get("image") and not row.get("images") and any(_TAG.search(text) for text in _texts(fields))


def _read(row: Fields, questions: bool) -> Content:
    told = _base(row).read(row, questions)
    if told.pictures or any(IMAGE_PLACEHOLDER in turn.prompt for turn in told.turns):
        raise BadRow("names pictures both as <img> and in another way; keep one of them")
    pictures = [name.strip() for turn in told.turns for name in _TAG.findall(turn.prompt)]
    if not all(pictures):
        raise BadRow("has <img> without a name; name the picture or take the tag out")
    turns = tuple(Turn(_TAG.sub(IMAGE_PLACEHOLDER, turn.prompt), turn.response) for turn in told.turns)
    return Content(told.system, turns, tuple(pictures))


def _write(row: Fields, system: str | None, turns: tuple[Turn, ...], pictures: list[Any] | None) -> dict[str, Any]:
    base = _base(row)
    before: list[tuple[str, str]] = []
    with suppress(BadRow):  # a new row says nothing yet
        before = [(tag[1].strip(), tag[0]) for turn in base.read(row, True).turns for tag in _TAG.finditer(turn.prompt)]
    if pictures is None:
        pictures = [name for name, _ in before]
    rest = map(_tag, pictures, [*before, *([None] * len(pictures))])
    tagged = tuple(
        Turn(re.sub(re.escape(IMAGE_PLACEHOLDER), lambda _: next(rest, IMAGE_PLACEHOLDER), turn.prompt), turn.response)
        for turn in turns
    )
    return base.write(row, system, tagged, None)


def _tag(picture: Any, before: tuple[str, str] | None) -> str:
    """The tag of a picture; where it is the same as before, the tag stays as it was, with its blanks."""
    if isinstance(picture, Embedded):
        picture = picture.value()
    return before[1] if before and before[0] == picture else f"<img>{picture}</img>"


def _reads(row: Fields) -> tuple[str, ...]:
    return _base(row).reads(row)


QWEN_VL = Dialect(
    "qwen-vl",
    "<img>name</img> in conversations or in query",
    _matches,
    _read,
    _write,
    reads=_reads,
)
