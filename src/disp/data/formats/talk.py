"""Whether a value is talk: questions and answers in a list, however these are written.

Trainers read chats under many names, and answers that nobody names by a format. What looks like this beside what is
read would be learnt and not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disp.data.formats.row import is_number

# Fields of a message that say whose it is, and what it says.
_WHO, _WHAT = ("role", "from"), ("content", "value")
# Speakers as the names of fields.
_SPEAKERS = (("user", "human"), ("assistant", "gpt"))
# Fields of a question and of its answer.
_ASKED = ("user", "human", "question", "query", "prompt", "instruction")
_ANSWERED = ("assistant", "gpt", "answer", "response", "completion", "output")


def is_talk(value: Any) -> bool:
    """Whether a value is a list with a message or a pair in it, also in a list within it, or a table's columns of one.

    One object alone is none: it may tell where a row comes from.
    """
    if isinstance(value, dict):
        return _is_said({key: each for key, each in value.items() if _is_listed(each)})
    return isinstance(value, list | tuple) and _holds_entry(value)


def _holds_entry(value: list[Any] | tuple[Any, ...]) -> bool:
    for each in value:
        if isinstance(each, dict):
            if _is_said(each):
                return True
        elif isinstance(each, list | tuple) and _holds_entry(each):
            return True
    return False


def paired_by(value: Any) -> tuple[str, str] | None:
    """The speakers of a list that holds a question and its answer in each entry; None where it is no such list."""
    first = value[0] if isinstance(value, list) and value else None
    if not isinstance(first, Mapping) or not first.keys().isdisjoint(_WHO):
        return None
    user, model = (next((name for name in names if name in first), None) for names in _SPEAKERS)
    return (user, model) if user and model else None


def says(value: Any) -> bool:
    """Whether a value says something that could be learnt: text, or what may hold text."""
    return isinstance(value, str | bytes | list | tuple | dict) and bool(value)


def is_history(value: Any) -> bool:
    """Whether a value lists earlier questions and answers as lists of two texts, as ms-swift does in ``history``."""
    return isinstance(value, list) and any(
        isinstance(each, list | tuple) and len(each) == 2 and all(isinstance(text, str) for text in each) and any(each)
        for each in value
    )


def _is_said(entry: Mapping[Any, Any]) -> bool:
    keys = entry.keys()
    # An answer may be a number; the edge of a graph, {"from": 1, "to": 2, "value": 3}, says nothing.
    return (not keys.isdisjoint(_WHO) and any(map(says, _in(entry, _WHO))) and any(map(says, _in(entry, _WHAT)))) or (
        not keys.isdisjoint(_ASKED)
        and any(map(says, _in(entry, _ASKED)))
        and any(says(value) or is_number(value) for value in _in(entry, _ANSWERED))
    )


def _in(entry: Mapping[Any, Any], names: tuple[str, ...]) -> list[Any]:
    return [entry[name] for name in names if name in entry]


def _is_listed(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, str) and each for each in value)
