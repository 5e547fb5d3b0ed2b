"""MiniCPM-V's way to name several pictures: ``image`` has a name for each, which stands for it in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from disp.data.formats.llava import LLAVA
from disp.data.formats.row import BadRow, Content, Dialect, Fields
from disp.data.formats.sharegpt import SHAREGPT
from disp.data.sample import IMAGE_PLACEHOLDER, Turn

_TAG = re.compile(r"<image(?:_\d+)?>")


def _base(row: Fields) -> Dialect:
    return LLAVA if LLAVA.matches(row) else SHAREGPT


def _matches(row: Fields) -> bool:
    named = row.get("image")
    return (
        isinstance(named, Mapping)
        and any(named.values())
        and all(isinstance(tag, str) and _TAG.fullmatch(tag) for tag in named)
        and (LLAVA.matches(row) or SHAREGPT.matches(row))
    )


def _named(row: Fields) -> dict[str, Any]:
    """The pictures by tag; a table's columns of other rows are left out."""
    named = row.get("image")
    if not isinstance(named, Mapping):
        raise BadRow("image must be an object with a file name for each <image_00>, <image_01> …")
    return {str(tag): picture for tag, picture in named.items() if picture}


def _tags(row: Fields, prompts: Iterator[str]) -> list[str]:
    """Which tag stands for the picture of each placeholder, in order; a single picture may have no place."""
    named = _named(row)
    tags = [tag for prompt in prompts for tag in _TAG.findall(prompt)]
    if not tags and len(named) == 1:
        return list(named)
    if unknown := set(tags) - set(named):
        raise BadRow(f"{min(unknown)} stands in the text, but image has no such name; add the picture")
    if unused := set(named) - set(tags):
        raise BadRow(f"image has the name {min(unused)}, which does not stand in a question; put it there")
    return tags


def _read(row: Fields, questions: bool) -> Content:
    told = _base(row).read({**row, "image": None}, questions)
    if told.pictures:
        raise BadRow("names pictures both in image and in another way; keep one of them")
    if any(_TAG.search(turn.response) for turn in told.turns):
        raise BadRow("an answer has a picture in it; models here answer in words: drop the row")
    named = _named(row)
    pictures = [named[tag] for tag in _tags(row, (turn.prompt for turn in told.turns))]
    if not all(isinstance(picture, str | bytes | dict) for picture in pictures):
        raise BadRow("image must have a file name for each of its tags")
    turns = tuple(Turn(_TAG.sub(IMAGE_PLACEHOLDER, turn.prompt), turn.response) for turn in told.turns)
    return Content(told.system, turns, tuple(pictures))


def _write(row: Fields, system: str | None, turns: tuple[Turn, ...], pictures: list[Any] | None) -> dict[str, Any]:
    base = _base(row)
    tags = _tags(row, (turn.prompt for turn in base.read({**row, "image": None}, True).turns))
    # More pictures than there were get tags of their own.
    count = max(len(pictures or ()), sum(turn.prompt.count(IMAGE_PLACEHOLDER) for turn in turns))
    free = (tag for number in range(count + len(tags)) if (tag := f"<image_{number:02}>") not in tags)
    tags += [next(free) for _ in range(count - len(tags))]
    rest = iter(tags)
    tagged = tuple(
        Turn(re.sub(re.escape(IMAGE_PLACEHOLDER), lambda _: next(rest), turn.prompt), turn.response) for turn in turns
    )
    new = base.write({**row, "image": None}, system, tagged, None)
    if pictures is None:
        return {**new, "image": row["image"]}
    return {**new, "image": dict(zip(tags, pictures, strict=False))}


def _reads(row: Fields) -> tuple[str, ...]:
    return _base(row).reads(row)


MINICPM_V = Dialect(
    "minicpm-v",
    "conversations (role, content) and image ({<image_00>: name})",
    _matches,
    _read,
    _write,
    reads=_reads,
)
