"""LLaMA-Factory's dataset_info.json: where a dataset lies, and what its columns and tags are called."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from disp.data.dataset import Source
from disp.data.formats.chat import Chat, fields_of, read_chat, write_chat
from disp.data.formats.context import is_told, said_of_tools
from disp.data.formats.fields import pair_dialect
from disp.data.formats.pairs import Pair
from disp.data.formats.row import BadRow, Content, Dialect, Fields, picture_field, pictures_in
from disp.errors import DispError
from disp.files import write_json
from disp.words import shortened

INFO = "dataset_info.json"
# Folders around a data file that are looked into for it: most keep their data files in folders below it.
_FOLDERS_UP = 4
# What of an entry says how rows are read.
_HOW = ("formatting", "columns", "tags")
# The columns of an entry that names none.
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_OPENAI = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def read_info(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The datasets that a folder's dataset_info.json declares by a file; empty if it is none of LLaMA-Factory's.

    Raises:
        DispError: the file is not JSON.
    """
    file = folder / INFO
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DispError(f"{file} is not valid JSON ({error})") from None
    if not isinstance(found, dict):
        return {}
    return {
        name: entry
        for name, entry in found.items()
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str)
    }


def entry_of(path: Path) -> tuple[str, Mapping[str, Any]] | None:
    """Name and entry of a data file or folder in a dataset_info.json beside it or around it, if there is one.

    Raises:
        DispError: the dataset_info.json beside it is not JSON, or two entries read the file in different ways.
    """
    found: list[tuple[Path, str, Mapping[str, Any]]] = []
    target = path.resolve()
    for folder in list(path.absolute().parents)[:_FOLDERS_UP]:
        try:
            entries = read_info(folder)
        except DispError:
            if folder == path.absolute().parent:
                raise
            continue  # of somebody else
        for name, entry in entries.items():
            named = file_of(folder, entry)
            # A folder stands for the files in it.
            if named == target or (named == target.parent and target.is_file()):
                found.append((folder, name, entry))
    if not found:
        return None
    folder, name, entry = found[0]
    for other, another, differing in found[1:]:
        if any(entry.get(key) != differing.get(key) for key in _HOW):
            raise DispError(
                f"{path} is declared twice, as {shortened(name)!r} in {folder / INFO} and as {shortened(another)!r} in "
                f"{other / INFO}, with other columns; take one of them out"
            )
    return name, entry


def file_of(folder: Path, entry: Mapping[str, Any]) -> Path | None:
    """The file or folder that an entry names, without links; None if none can be called so."""
    try:
        return (folder / entry["file_name"]).resolve()
    except (OSError, ValueError, RuntimeError):  # too long, a null character, links in a circle
        return None


def declared(entry: Mapping[str, Any]) -> Dialect:
    """How the rows of an entry are read: with its columns and tags, and LLaMA-Factory's own for what it leaves out.

    An entry with ``columns`` has no others: LLaMA-Factory then takes what is left out for absent. Where no column of a
    text is named it reads nothing at all, so that their usual names are kept here.
    """
    columns, tags = _names(entry.get("columns")), _names(entry.get("tags"))
    if not columns.keys() & _ALPACA.keys():
        columns = {**_ALPACA, **columns}
    pictures = columns.get("images")
    formatting = entry.get("formatting", "alpaca")
    if formatting == "openai":  # a chat as sharegpt is, with other names unless tags say some
        tags = {**_OPENAI, **tags}
    if formatting not in ("sharegpt", "openai"):
        question, addition = columns.get("prompt"), columns.get("query")
        if question is None:
            question, addition = addition, None
        pair = Pair(
            question,
            columns.get("response"),
            addition=addition,
            system=columns.get("system"),
            history=columns.get("history"),
            pictures=pictures,
        )
        wants = " and ".join(name for name in (question, pair.answer) if name)
        return _with_what_is_declared(pair_dialect("llama-factory", wants, pair), entry, columns)
    chat = Chat(
        messages=columns.get("messages", "conversations"),
        who=tags.get("role_tag", "from"),
        what=tags.get("content_tag", "value"),
        users=(tags.get("user_tag", "human"),),
        assistants=(tags.get("assistant_tag", "gpt"),),
        systems=(tags.get("system_tag", "system"),),
        system_field=columns.get("system"),
        pictures=pictures,
    )
    dialect = Dialect(
        "llama-factory",
        f"{chat.messages} ({chat.who}, {chat.what})",
        lambda row: chat.messages in row,
        lambda row, questions: read_chat(row, chat, questions),
        lambda row, system, turns, pictures: write_chat(row, chat, system, turns, pictures),
        reads=lambda row: fields_of(row, chat),
    )
    return _with_what_is_declared(dialect, entry, columns)


def _with_what_is_declared(dialect: Dialect, entry: Mapping[str, Any], columns: Mapping[str, str]) -> Dialect:
    """The dialect, whose rows must have no video, sound, tools or other answers, and declared pictures alone."""
    media = [columns[kind] for kind in ("videos", "audios") if kind in columns]
    others = [columns[kind] for kind in ("chosen", "rejected") if kind in columns]

    def read(row: Fields, questions: bool) -> Content:
        if column := next((name for name in media if row.get(name)), None):
            raise BadRow(f"is about a video or a sound ({column!r}), which no model here takes; drop it")
        if column := next((name for name in others if row.get(name)), None):
            raise BadRow(f"has other answers under {column!r}, as sets of preferences do, which are not looked at")
        if (tools := columns.get("tools")) and is_told(row.get(tools)):
            raise BadRow(said_of_tools(tools))
        if "columns" in entry and "images" not in columns and pictures_in(row):
            raise BadRow(
                f"has a picture under {picture_field(row)!r}, which {INFO} does not declare, so that LLaMA-Factory "
                'shows none; add "images" to the columns, or take the picture out'
            )
        return dialect.read(row, questions)

    return replace(dialect, read=read)


def write_info(path: Path, source: Source) -> None:
    """Declare a data file as the one that was read was declared."""
    if source.entry:
        name, entry = source.entry
        write_json(path.parent / INFO, {name: {**entry, "file_name": path.name}})


def _names(value: Any) -> dict[str, str]:
    return {key: name for key, name in value.items() if isinstance(name, str)} if isinstance(value, dict) else {}
