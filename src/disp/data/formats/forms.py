"""Rows that say what they say in two forms: only one is audited and rewritten, so the other must not pass unseen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from disp.data.formats import fields, minicpm_v, qwen_vl
from disp.data.formats.context import check_context
from disp.data.formats.dialects import DIALECTS
from disp.data.formats.row import PICTURE_FIELDS, BadRow, Content, Dialect, Fields, is_nan, is_number, leave_out
from disp.data.formats.talk import is_history, is_talk, says
from disp.data.formats.turns import check_no_hidden_turn

# Those that name pictures in another way are of a form that is among the others; question files have no answers.
_FORMS = [
    dialect for dialect in DIALECTS.values() if dialect not in (minicpm_v.MINICPM_V, qwen_vl.QWEN_VL, fields.QUESTIONS)
]
# Where sets of preferences have their other answers.
_PREFERENCES = ("chosen", "chosen_response", "preferred_output", "non_preferred_output")


def check_one_form(row: Fields, dialect: Dialect, content: Content) -> None:
    """Make sure that a row has no answers but those that were read.

    Args:
        row: its fields.
        dialect: how it was read.
        content: what it says.

    Raises:
        BadRow: its fields are those of another format too, it has answers that are to be preferred or rejected, a
            text holds a turn of its own, or the row tells the model more than was read.
    """
    check_no_hidden_turn(content)
    check_context(row, dialect, content)
    read = set(dialect.reads(row))
    rest = {key: value for key, value in row.items() if key not in read and key not in PICTURE_FIELDS and _holds(value)}
    for key in rest:
        # A count of them, or whether a row was chosen, says nothing that could be learnt.
        if (key in _PREFERENCES or "rejected" in str(key).lower()) and says(rest[key]):
            raise BadRow(
                f"has other answers under {key!r}, as sets of preferences do, which are not looked at; take it out, as "
                f"{leave_out(key)} does"
            )
    if content.pictures:  # what makes a text a caption, wherever the row names them
        rest["image"] = "its picture"
    for other in _FORMS:
        while other.matches(rest):
            again = [key for key in other.reads(rest) if key not in PICTURE_FIELDS]
            if _answers(other, rest, again):
                # Beside a conversation, a single text may be something else, such as what is written in the picture.
                alone = ", or has another text there" if other is fields.CAPTIONS else ""
                raise _twice(row, dialect, f"{other.name} ({_named(again)}){alone}", again)
            for key in again:
                del rest[key]
    # A prompt that was read has both a response and a completion.
    for pair in fields.pairs_in(row if dialect is fields.QUESTION_ANSWER else rest, rest):
        raise _twice(row, dialect, f"one under {_named(map(repr, pair))}", [key for key in pair if key in rest])
    for key, value in rest.items():
        # A picture may have several captions.
        captions = bool(content.pictures) and key in ("text", "caption") and isinstance(value, list)
        if captions or is_talk(value) or (key == "history" and is_history(value)):
            raise _twice(row, dialect, f"one under {key!r}", (key,))


def _twice(row: Fields, dialect: Dialect, other: str, keys: Iterable[str]) -> BadRow:
    named = _named(key for key in dialect.reads(row) if key in row)
    return BadRow(
        f"is written in two forms, {dialect.name} ({named}) and {other}, of which one alone is looked at and "
        f"rewritten; take the fields of one of them out, as {leave_out(*_names(keys))} does"
    )


def _holds(value: Any) -> bool:
    return isinstance(value, str) or ((bool(value) or is_number(value)) and not is_nan(value))


def _answers(dialect: Dialect, row: Fields, fields: Iterable[str]) -> bool:
    """Whether a row has answers in a form; also where it is not understood, but text is there."""
    try:
        return any(turn.response for turn in dialect.read(row, True).turns)
    except BadRow:
        return any(row[key] and isinstance(row[key], str | list | dict) for key in fields)


def _named(keys: Iterable[str]) -> str:
    return ", ".join(_names(keys))


def _names(keys: Iterable[str]) -> list[str]:
    return sorted(key for key in keys if key not in PICTURE_FIELDS)
