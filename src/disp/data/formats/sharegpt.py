"""Chats of ``role`` and ``content``, as ShareGPT, OpenAI, TRL, MiniCPM-V and ms-swift have them.

The list is called ``messages`` or ``conversations``, a content is text or a list of typed parts, and the pictures are
in ``images``, in ``image``, or in the parts.
"""

from __future__ import annotations

from typing import Any

from disp.data.formats.chat import CONVERSATIONS, chat_of, fields_of, read_chat, write_chat
from disp.data.formats.row import Content, Dialect, Fields
from disp.data.sample import Turn


def _matches(row: Fields) -> bool:
    return ("messages" in row or "conversations" in row) and chat_of(row) != CONVERSATIONS


def _read(row: Fields, questions: bool) -> Content:
    return read_chat(row, chat_of(row), questions)


def _write(row: Fields, system: str | None, turns: tuple[Turn, ...], pictures: list[Any] | None) -> dict[str, Any]:
    return write_chat(row, chat_of(row), system, turns, pictures)


def _reads(row: Fields) -> tuple[str, ...]:
    return fields_of(row, chat_of(row))


SHAREGPT = Dialect("sharegpt", "messages (role, content) and images", _matches, _read, _write, reads=_reads)
