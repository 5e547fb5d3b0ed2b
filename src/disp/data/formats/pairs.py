"""Rows that hold a question and an answer in fields of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from disp.data.formats.row import (
    BadRow,
    Content,
    Fields,
    is_nan,
    is_number,
    pictures_in,
    those_in,
    with_pictures,
    without_placeholder,
)
from disp.data.sample import IMAGE_PLACEHOLDER, Turn

# Whole numbers up to here are exact as floats.
_EXACT = 2**53


@dataclass(frozen=True)
class Pair:
    """The names of the fields.

    Attributes:
        question: field with the question; None for a caption, which answers none.
        answer: field with the answer; None for a question without one.
        addition: field whose text follows the question, on a line of its own.
        system: field with the system message.
        history: field with the earlier questions and answers, as a list of lists of two.
        pictures: field with the pictures; None for ``image`` or ``images``.
    """

    question: str | None
    answer: str | None
    addition: str | None = None
    system: str | None = None
    history: str | None = None
    pictures: str | None = None

    def matches(self, row: Fields) -> bool:
        """Whether a row has these fields, with text in them, or a number as the answer."""
        answer = self.answer is None or self.text_of_answer(row) is not None
        return answer and (self.question is None or isinstance(row.get(self.question), str))

    def text_of_answer(self, row: Fields) -> str | None:
        """The answer as text; None where it is neither text nor a number."""
        value: Any = row.get(self.answer) if self.answer else None
        return _number(value) if self.question and is_number(value) else _if_text(value)

    def misfit(self, row: Fields) -> str | None:
        """What keeps a row with all these fields from being read; None where a field is not there."""
        if self.question is None or self.answer is None or self.matches(row):
            return None
        if self.question not in row or self.answer not in row:
            return None
        if not isinstance(row[self.question], str):
            return f"{self.question!r} holds {kind_of(row[self.question])}, and must be text"
        return f"{self.answer!r} holds {kind_of(row[self.answer])}, and must be text or a number"


def read_pair(row: Fields, pair: Pair, questions: bool = False) -> Content:
    """What a row of fields says.

    Raises:
        BadRow: a field does not hold what it is to hold, or the question has no answer.
    """
    if pair.answer is None and not questions:
        raise BadRow("a question without an answer; `disp generate --data` answers it")
    turns = []
    for earlier in _list(row, pair.history):
        if not isinstance(earlier, list | tuple) or len(earlier) != 2 or not all(isinstance(e, str) for e in earlier):
            raise BadRow(f"{pair.history} must hold pairs of a question and an answer")
        turns.append(Turn(*earlier))
    answer = pair.text_of_answer(row) or ""
    turns.append(Turn(_question(row, pair), answer))
    for index, turn in enumerate(turns):
        without_placeholder(turn.response, 2 * index + 2)
    return Content(_text(row, pair.system) or None, tuple(turns), tuple(pictures_in(row, pair.pictures)))


def fields_of(row: Fields, pair: Pair) -> tuple[str, ...]:
    """The fields of a row that are read."""
    names = (pair.question, pair.addition, pair.answer, pair.system, pair.history)
    return those_in(row, *names, pictures=pair.pictures)


def write_pair(
    row: Fields, pair: Pair, system: str | None, turns: Sequence[Turn], pictures: list[Any] | None
) -> dict[str, Any]:
    """The row with other content."""
    new = dict(row)
    last = turns[-1]
    if pair.question and _question(row, pair) != last.prompt:
        new[pair.question] = last.prompt
        if pair.addition and new.get(pair.addition):
            new[pair.addition] = ""
    if pair.answer and pair.text_of_answer(row) != last.response:  # a number that is unchanged stays one
        new[pair.answer] = last.response
    earlier = [[turn.prompt, turn.response] for turn in turns[:-1]]
    if pair.history and (earlier or new.get(pair.history)):
        new[pair.history] = earlier
    if pair.system and (system or None) != (row.get(pair.system) or None):
        new[pair.system] = system or ""
    return new if pictures is None else with_pictures(new, pictures, pair.pictures)


def _question(row: Fields, pair: Pair) -> str:
    if pair.question is None:
        return IMAGE_PLACEHOLDER
    addition = _text(row, pair.addition)
    question = _text(row, pair.question)
    return f"{question}\n{addition}" if question and addition else question or addition


def _number(value: float) -> str | None:
    """A number as text: 3.0 of a table is "3"; None for what is no number."""
    if isinstance(value, int):  # which may be too large for a float
        return str(value)
    if not math.isfinite(value):
        return None
    return str(int(value)) if value == int(value) and abs(value) < _EXACT else str(value)


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    if value is None or is_nan(value):
        return "nothing"
    kinds = ((bool, "true or false"), (int | float, "a number"), (str, "text"), (list, "a list"), (dict, "an object"))
    return next((kind for types, kind in kinds if isinstance(value, types)), f"a {type(value).__name__}")


def _if_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _text(row: Fields, field: str | None) -> str:
    value = row.get(field) if field else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{field} must be text")
    return value


def _list(row: Fields, field: str | None) -> list[Any]:
    value = row.get(field) if field else None
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRow(f"{field} must be a list")
    return value
