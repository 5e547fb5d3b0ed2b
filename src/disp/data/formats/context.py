"""What a row tells the model beside its questions: a system message, tools, the objects of ms-swift.

Where it is not read, it would be learnt with the row, or put into its texts, and nobody would have looked at it.
"""

from __future__ import annotations

from typing import Any

from disp.data.formats.row import BadRow, Content, Dialect, Fields, leave_out
from disp.data.formats.talk import says

# ms-swift calls a system message by both names.
_SYSTEM = ("system", "system_prompt")
_TOOLS = "tools"
# ms-swift puts the names and boxes under "objects" in place of these.
_OBJECTS, _PLACES = "objects", ("<ref-object>", "<bbox>")
# How tables of text write that there is nothing.
_NOTHING = frozenset(("", "[]", "{}", "null", "none", "nan"))


def check_context(row: Fields, dialect: Dialect, content: Content) -> None:
    """Make sure that a row tells the model nothing but what was read.

    Args:
        row: its fields.
        dialect: how it was read.
        content: what it says.

    Raises:
        BadRow: it has a system message or tools that were not read, or its texts have places for its objects.
    """
    read = set(dialect.reads(row))
    # LLaMA-Factory takes no other columns than those that are declared, for which its own reader looks.
    if dialect.name != "llama-factory":
        for key in _SYSTEM:
            if key not in read and is_told(row.get(key)) and row[key] != content.system:
                other = "call it 'system'" if "system" in _fields_of(dialect, row) else "make it a chat's first message"
                raise BadRow(
                    f"has a system message under {key!r}, which is not looked at; {other}, or take it out, as "
                    f"{leave_out(key)} does"
                )
        if _TOOLS not in read and is_told(row.get(_TOOLS)):
            raise BadRow(said_of_tools(_TOOLS))
    texts = [content.system or "", *(text for turn in content.turns for text in (turn.prompt, turn.response))]
    if is_told(row.get(_OBJECTS)) and (
        place := next((each for each in _PLACES if any(each in t for t in texts)), None)
    ):
        raise BadRow(
            f"has {place} in a text, for which ms-swift puts what is under {_OBJECTS!r}, which is not looked at; write "
            "the names and boxes into the text"
        )


def is_told(value: Any) -> bool:
    """Whether a field says something; texts such as "[]" say that there is nothing."""
    return says(value) and not (isinstance(value, str) and value.strip().lower() in _NOTHING)


def said_of_tools(key: str) -> str:
    """Why a row with tools in a field is not used."""
    return (
        f"has tools under {key!r}, which trainers write into the system message and which are not looked at; take them "
        f"out, as {leave_out(key)} does"
    )


def _fields_of(dialect: Dialect, row: Fields) -> tuple[str, ...]:
    """The fields that would be read if there were a field ``system``."""
    return dialect.reads({**row, "system": ""})
