"""Chats of ``role`` and ``content``, as ShareGPT, OpenAI, TRL, MiniCPM-V and ms-swift have them.

The list is called ``messages``, ``conversations`` or ``conversation``, or is parted in two, ``prompt`` and
``completion``, as TRL has it. A content is text or a list of typed parts, and the pictures are in ``images``, in
``image``, or in the parts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from disp.data.formats.chat import (
    CONVERSATIONS,
    MESSAGES,
    SINGLE,
    chat_of,
    fields_of,
    is_chat,
    read_chat,
    write_chat,
)
from disp.data.formats.row import Content, Dialect, Fields, those_in
from disp.data.formats.talk import paired_by
from disp.data.sample import Turn

_PARTS = ("prompt", "completion")
# The two as one list, under a name that no row has.
_JOINED = replace(MESSAGES, messages=" and ".join(_PARTS), system_field=None)


def _is_parted(row: Fields) -> bool:
    whole = row.get("messages") or row.get("conversations") or is_chat(row.get(SINGLE))
    return not whole and all(is_chat(row.get(name)) for name in _PARTS)


def _matches(row: Fields) -> bool:
    if _is_parted(row):
        return True
    named = "messages" in row or "conversations" in row or is_chat(row.get(SINGLE))
    return named and (chat := chat_of(row)) != CONVERSATIONS and not paired_by(row.get(chat.messages))


def _read(row: Fields, questions: bool) -> Content:
    if _is_parted(row):
        return read_chat(_joined(row), _JOINED, questions)
    return read_chat(row, chat_of(row), questions)


def _write(row: Fields, system: str | None, turns: tuple[Turn, ...], pictures: list[Any] | None) -> dict[str, Any]:
    if not _is_parted(row):
        return write_chat(row, chat_of(row), system, turns, pictures)
    new = write_chat(_joined(row), _JOINED, system, turns, pictures)
    messages = new.pop(_JOINED.messages)
    begin = len(messages) - len(row["completion"])
    return {**new, "prompt": messages[:begin], "completion": messages[begin:]}


def _joined(row: Fields) -> dict[str, Any]:
    return {**row, _JOINED.messages: [*row["prompt"], *row["completion"]]}


def _reads(row: Fields) -> tuple[str, ...]:
    if _is_parted(row):
        return those_in(row, *_PARTS)
    return fields_of(row, chat_of(row))


SHAREGPT = Dialect("sharegpt", "messages (role, content) and images", _matches, _read, _write, reads=_reads)
