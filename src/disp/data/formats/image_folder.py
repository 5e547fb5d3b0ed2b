"""A folder of pictures with metadata.jsonl or metadata.csv, as Hugging Face's imagefolder has it."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from disp.data.cells import allow_long_cells
from disp.data.dataset import Source
from disp.data.formats import json_files
from disp.data.formats.dialects import dialect_of
from disp.data.formats.files import Files, Output, check_columns, with_values
from disp.data.formats.row import BadRow, Content, Dialect, Row
from disp.errors import DispError
from disp.files import write_text

NAMES = ("metadata.jsonl", "metadata.csv")
# What the picture's field is called elsewhere; here it may have another word before it, such as image_file_name.
_ONE, _SEVERAL = "image", "images"
_SUFFIXES = {"file_name": _ONE, "file_names": _SEVERAL}


def rows(path: Path, source: Source) -> Iterator[Row]:
    """The rows of the metadata file, with the name of the picture under ``image``, those of several under ``images``.

    Raises:
        DispError: the file cannot be read.
    """
    known: dict[str, str] = {}
    for row in _raw_rows(path):
        value = row.value
        if isinstance(value, dict):
            name = _field(value)
            if name is None or {_ONE, _SEVERAL} & set(value):
                keys = ", ".join(map(str, value))[:200]
                value = ValueError(f"needs file_name, and image under no other key; found {keys}")
            elif other := _further(value, name, path.parent):
                value = ValueError(
                    f"names a further picture under {other!r}, which is not looked at; take the field out"
                )
            # A file is written with one name of this field, which is that of its first row.
            elif (first := known.setdefault(_elsewhere(name), name)) != name:
                value = ValueError(
                    f"names its picture under {name!r}, and earlier rows do under {first!r}; use one name"
                )
            else:
                value = {_elsewhere(name) if key == name else key: each for key, each in value.items()}
        yield Row(row.place, row.number, value)


def tells_of_files(columns: Iterable[str]) -> bool:
    """Whether a table's columns name pictures as metadata does, and hold none."""
    return any(map(_suffix, columns)) and not {_ONE, _SEVERAL} & set(columns)


def _field(row: dict[str, Any]) -> str | None:
    """The field that names a row's picture: file_name, or the only one with a word before that; None if unclear."""
    found = [key for key in row if isinstance(key, str) and _suffix(key) and row[key]]
    usual = [*_SUFFIXES, *(f"{word}_{suffix}" for word in (_ONE, _SEVERAL) for suffix in _SUFFIXES)]
    return next((key for key in usual if key in found), found[0] if len(found) == 1 else None)


def _further(row: dict[str, Any], name: str, folder: Path) -> str | None:
    """A field that names another file of the folder; what is not there may say how the picture was called before."""
    for key, value in row.items():
        if isinstance(key, str) and key != name and _suffix(key) and value:
            names = value if isinstance(value, list) else [value]
            if any(isinstance(each, str) and each != row[name] and os.path.isfile(folder / each) for each in names):
                return key
    return None


def _suffix(name: str) -> str | None:
    return next((each for each in _SUFFIXES if name == each or name.endswith(f"_{each}")), None)


def _elsewhere(name: str) -> str:
    return _SUFFIXES[_suffix(name) or ""]


def save(path: Path, outputs: Iterable[Output], like: tuple[Path, Source] | None = None) -> None:
    """Write the metadata file; the pictures are laid beside it by the caller."""
    names = {elsewhere: here for here, elsewhere in _SUFFIXES.items()}
    if like is not None:
        read = (_field(row.value) for row in _raw_rows(like[0]) if isinstance(row.value, dict))
        names.update({_elsewhere(name): name for name in reversed([each for each in read if each is not None])})
    named = (
        Output({names.get(key, key): each for key, each in output.row.items()}, "", output.key) for output in outputs
    )
    if path.suffix != ".csv":
        json_files.save_lines(path, named)
        return
    found = [with_values(output.row, text=True) for output in named]
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in found for key in row))
    # Every cell in quotes: a carriage return within one would be taken for the end of the row.
    writer = csv.DictWriter(text, columns, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(found)
    write_text(path, text.getvalue())


def _raw_rows(path: Path) -> Iterator[Row]:
    return _csv_rows(path) if path.suffix == ".csv" else json_files.rows(path, Source("lines"))


def _csv_rows(path: Path) -> Iterator[Row]:
    allow_long_cells()
    before = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # Without "strict" a quote that is not closed makes one cell of all that follows.
            reader = csv.DictReader(file, strict=True)
            names = list(reader.fieldnames or ())
            if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in names[0]), None)):
                raise DispError(f"{path} has {other!r} between its columns; save it with commas")
            check_columns(path, names)
            before = 1
            for number, row in enumerate(reader):
                before = reader.line_num
                value: Any = row
                if None in row or None in row.values():
                    value = ValueError("has more or fewer fields than the first line")
                else:
                    value = _filled(row)
                yield Row(f"{path.name}:line {reader.line_num}", number, value)
    except csv.Error as error:
        raise DispError(
            f"{path} is no CSV in UTF-8 ({error}, in the row from line {before + 1} on); close its quotes, and save it "
            "again"
        ) from None
    except UnicodeDecodeError as error:
        raise DispError(f"{path} is no CSV in UTF-8 ({error}); save it again") from None


def _filled(row: dict[str, str]) -> dict[str, str]:
    """The row without empty cells, which say "nothing here", but for the answer that a model left empty."""
    filled = {key: each for key, each in row.items() if each}
    if len(filled) == len(row):
        return row
    # What a row without empty cells would be: a caption that is missing in a table of questions is no answer.
    usual = _read(dict.fromkeys(row, "x"))
    for key in [key for key in row if key not in filled]:
        found = _read({**filled, key: ""})
        if found and usual and found[0] is usual[0] and not found[1].turns[-1].response:
            return {name: each for name, each in row.items() if each or name == key}
    return filled


def _read(row: dict[str, str]) -> tuple[Dialect, Content] | None:
    row = {**row, "image": "0.png"}
    try:
        dialect = dialect_of(row)
        return dialect, dialect.read(row, False)
    except BadRow:
        return None


IMAGE_FOLDER = Files("imagefolder", "an image folder with metadata.jsonl or metadata.csv", rows, save, ".jsonl")
