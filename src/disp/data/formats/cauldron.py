"""The rows of the-cauldron: ``images``, and ``texts`` of ``user`` and ``assistant``."""

from __future__ import annotations

from typing import Any

from disp.data.formats.row import (
    BadRow,
    Content,
    Dialect,
    Fields,
    pictures_in,
    those_in,
    with_pictures,
    without_placeholder,
)
from disp.data.sample import Turn


def _matches(row: Fields) -> bool:
    texts = row.get("texts")
    return isinstance(texts, list) and bool(texts) and isinstance(texts[0], dict) and "user" in texts[0]


def _read(row: Fields, questions: bool) -> Content:
    turns = []
    for index, text in enumerate(row.get("texts") or []):
        pair = (text.get("user"), text.get("assistant")) if isinstance(text, dict) else (None, None)
        if not all(isinstance(each, str) for each in pair):
            raise BadRow("every entry of texts needs text in 'user' and in 'assistant'")
        turns.append(Turn(str(pair[0]), without_placeholder(str(pair[1]), 2 * index + 2)))
    if not turns:
        raise BadRow("no texts")
    return Content(None, tuple(turns), tuple(pictures_in(row)))


def _write(row: Fields, system: str | None, turns: tuple[Turn, ...], pictures: list[Any] | None) -> dict[str, Any]:
    old = [*row["texts"], *({} for _ in turns)]
    texts = [{**text, "user": turn.prompt, "assistant": turn.response} for text, turn in zip(old, turns, strict=False)]
    new = {**row, "texts": texts}
    return new if pictures is None else with_pictures(new, pictures)


def _reads(row: Fields) -> tuple[str, ...]:
    return those_in(row, "texts")


CAULDRON = Dialect("the-cauldron", "images and texts (user, assistant)", _matches, _read, _write, reads=_reads)
