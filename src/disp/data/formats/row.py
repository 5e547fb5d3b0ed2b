"""What readers and writers share: a row, what it says, and why it cannot be used."""

from __future__ import annotations

import io
import math
import pickle
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disp.data.references import Reference
from disp.data.sample import IMAGE_PLACEHOLDER, Turn
from disp.words import shortened

Fields = Mapping[str, Any]
PICTURE_FIELDS = ("image", "images")
# Characters of a key, a word or a name in a text that are looked at: no such name is longer, and patterns stay fast
# whatever a row holds.
LONGEST_WORD = 1000


class BadRow(Exception):
    """Why a row cannot be used.

    What it quotes of the data has no line's end and nothing that a terminal obeys.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return (
            text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
        )


@dataclass(frozen=True)
class Row:
    """A row as it lies in a file.

    Attributes:
        place: where it is, for messages.
        number: number from 0, which is the id of a row without one.
        value: what was read; an exception for what could not be.
        file: name of its file within the dataset, where there are several.
    """

    place: str
    number: int
    value: Any
    file: str = ""


@dataclass(frozen=True)
class Content:
    """What a row says.

    Attributes:
        system: the system message, or None.
        turns: the exchanges; "" is the answer to a question without one.
        pictures: what the row says about its pictures, in the order of their placeholders.
    """

    system: str | None
    turns: tuple[Turn, ...]
    pictures: tuple[Any, ...]


@dataclass(frozen=True)
class Dialect:
    """One way to write a sample as a row.

    Attributes:
        name: what the user calls it.
        wants: its keys, for messages.
        matches: whether a row looks like this.
        read: what a row says; with True also where the last question has no answer.
        write: the row with other content; pictures None where they are unchanged.
        reads: the fields of a row that it reads; all others are beside what the row says.
    """

    name: str
    wants: str
    matches: Callable[[Fields], bool]
    read: Callable[[Fields, bool], Content]
    write: Callable[[Fields, str | None, tuple[Turn, ...], list[Any] | None], dict[str, Any]]
    reads: Callable[[Fields], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Origin:
    """The row that a sample was read from, for writing it back.

    Attributes:
        packed: its fields and what it says about its pictures, in a fraction of the memory; see `origin_of`.
        turns: what it says, whose texts are not packed once more.
        file: as in `Row`.
        dialect: how it is written.
        pictures: the files that its pictures were found to be.
    """

    packed: bytes
    turns: tuple[Turn, ...]
    file: str
    dialect: Dialect
    pictures: tuple[Path, ...]

    @property
    def row(self) -> Fields:
        """The fields, without the bytes of pictures (see `Embedded`); made anew at each call."""
        row: Fields = self._unpacked()[0]
        return row

    @property
    def references(self) -> tuple[Reference, ...]:
        """What the row says about its pictures; made anew at each call."""
        references: tuple[Reference, ...] = self._unpacked()[1]
        return references

    def _unpacked(self) -> Any:
        # Bytes of ours, which never leave the memory of these processes.
        return _Unpacker(io.BytesIO(self.packed), _texts(self.turns)).load()


def origin_of(
    row: Fields,
    turns: tuple[Turn, ...],
    *,
    dialect: Dialect,
    file: str = "",
    references: tuple[Reference, ...] = (),
    pictures: tuple[Path, ...] = (),
) -> Origin:
    """The origin of a sample; equal rows are packed into equal bytes.

    Args:
        row: its fields.
        turns: what it says.
        dialect: see `Origin`, as ``file`` and ``pictures``.
        file: see there.
        references: what it says about its pictures.
        pictures: see there.
    """
    memory = io.BytesIO()
    _Packer(memory, _texts(turns)).dump((row, references))
    return Origin(packed=memory.getvalue(), turns=turns, file=file, dialect=dialect, pictures=pictures)


def _texts(turns: Sequence[Turn]) -> list[str]:
    return [text for turn in turns for text in (turn.prompt, turn.response)]


class _Packer(pickle.Pickler):
    """Writes texts that are known as their numbers."""

    def __init__(self, file: io.BytesIO, texts: Sequence[str]):
        super().__init__(file, protocol=5)
        self.fast = True  # nothing is told by where it stood before, which differs in equal rows
        self._numbers = {text: number for number, text in enumerate(texts)}

    def persistent_id(self, obj: Any) -> int | None:
        return self._numbers.get(obj) if type(obj) is str else None


class _Unpacker(pickle.Unpickler):
    """Reads what `_Packer` wrote."""

    def __init__(self, file: io.BytesIO, texts: Sequence[str]):
        super().__init__(file)
        self._known = texts

    def persistent_load(self, pid: Any) -> str:
        return self._known[pid]


def id_of(row: Fields, number: int) -> str:
    """The id of a row; its number where it has none or an empty one.

    A table's 3.0 is "3", and MongoDB's ``{"$oid": "5f"}`` is "5f".
    """
    for key in ("id", "question_id", "__key__"):
        identity = row.get(key)
        if identity is not None and identity != "":
            break
    else:
        return str(number)
    if isinstance(identity, dict) and len(identity) == 1:
        ((kind, inner),) = identity.items()
        identity = inner if str(kind).startswith("$") else identity
    if isinstance(identity, float) and identity.is_integer():
        identity = int(identity)
    if not isinstance(identity, str | int):
        raise BadRow(f"{key} must be text or a number; --leave-out {key} numbers the rows")
    return str(identity)


def leave_out(*keys: str) -> str:
    """The option that takes fields out, for messages; keys come from data and are shown without control characters."""
    names = ",".join(keys)
    return f"--leave-out {shortened(shlex.quote(names) if names.isprintable() else ascii(names), 200)}"


def system_under(row: Fields, field: str | None) -> str | None:
    """The system message in a field of its own; None where there is no such field, or an empty one.

    Raises:
        BadRow: it is no text.
    """
    system = row.get(field) if field else None
    if system is None or system == "" or is_nan(system):
        return None
    if not isinstance(system, str):
        raise BadRow(f"{field} must be text")
    return system


def is_nan(value: Any) -> bool:
    """Whether a value is a table's "nothing here"."""
    return isinstance(value, float) and math.isnan(value)


def is_number(value: Any) -> bool:
    """Whether a value is a number, and not true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_deeper(value: Any, depth: int) -> bool:
    """Whether a row or a part of one has more fields and lists in each other than ``depth``."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        if isinstance(part, dict | list) and (depth == 0 or is_deeper(part, depth - 1)):
            return True
    return False


def those_in(row: Fields, *names: str | None, pictures: str | None = None) -> tuple[str, ...]:
    """The fields of these names that a row has, and those with its pictures; see `Dialect.reads`."""
    read = (*names, *((pictures,) if pictures else PICTURE_FIELDS))
    return tuple(name for name in read if name is not None and name in row)


def picture_field(row: Fields) -> str:
    """The field that names the pictures; tables exported with both fields leave one of them null or empty."""
    return "images" if row.get("images") or ("images" in row and not row.get("image")) else "image"


def pictures_in(row: Fields, field: str | None = None) -> list[Any]:
    """What the picture field holds, as a list."""
    if field is None and row.get("image") and row.get("images"):
        raise BadRow("has both image and images; keep one of them")
    value = row.get(field or picture_field(row)) or []
    pictures = list(value) if isinstance(value, list) else [value]
    while pictures and _is_empty(pictures[-1]):  # a table's "no picture", also behind fewer than other rows have
        pictures.pop()
    if not all(isinstance(each, str | bytes | dict) and each for each in pictures):
        raise BadRow("image must be a file name or a list of file names")
    return pictures


def _is_empty(picture: Any) -> bool:
    return picture is None or picture == "" or (isinstance(picture, dict) and not any(picture.values()))


def _empty_at_end(pictures: Sequence[Any]) -> int:
    return next((count for count, each in enumerate(reversed(pictures)) if not _is_empty(each)), len(pictures))


def with_pictures(row: dict[str, Any], pictures: Sequence[Any], field: str | None = None) -> dict[str, Any]:
    """The row with other pictures in their field: one alone stays alone, a list stays a list."""
    key = field or picture_field(row)
    if pictures:
        old = row.get(key)
        behind = old[len(old) - _empty_at_end(old) :] if isinstance(old, list) else []
        row[key] = [*pictures, *behind] if isinstance(old, list) or len(pictures) > 1 else pictures[0]
    elif row.get(key):
        del row[key]
    return row


def without_placeholder(text: str, number: int) -> str:
    """An answer, which must not hold a picture.

    Raises:
        BadRow: it does.
    """
    begin = text.find("<img>")
    if IMAGE_PLACEHOLDER in text or (begin >= 0 and text.find("</img>", begin) >= 0):
        raise BadRow(
            f"message {number} is an answer with a picture in it, or with what trainers take for one "
            f"({shortened(text)!r}); models here answer in words: drop the row, or take it out"
        )
    return text
