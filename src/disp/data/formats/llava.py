"""LLaVA's rows: ``id``, ``image`` or ``images``, and ``conversations`` of ``from`` and ``value``."""

from __future__ import annotations

from typing import Any

from disp.data.formats.chat import CONVERSATIONS, chat_of, fields_of, read_chat, write_chat
from disp.data.formats.row import Content, Dialect, Fields
from disp.data.formats.talk import paired_by
from disp.data.sample import Turn


def _matches(row: Fields) -> bool:
    return "conversations" in row and chat_of(row) == CONVERSATIONS and not paired_by(row["conversations"])


def _read(row: Fields, questions: bool) -> Content:
    return read_chat(row, CONVERSATIONS, questions)


def _write(row: Fields, system: str | None, turns: tuple[Turn, ...], pictures: list[Any] | None) -> dict[str, Any]:
    return write_chat(row, CONVERSATIONS, system, turns, pictures)


def _reads(row: Fields) -> tuple[str, ...]:
    return fields_of(row, CONVERSATIONS)


LLAVA = Dialect("llava", "conversations (from, value) and image", _matches, _read, _write, reads=_reads)
