"""A folder of pictures with metadata.jsonl or metadata.csv, as Hugging Face's imagefolder has it."""

from __future__ import annotations

import csv
import io
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
# What the picture's field is called here, and elsewhere.
_FIELDS = {"file_name": "image", "file_names": "images"}
_ELSEWHERE = {name: here for here, name in _FIELDS.items()}


def rows(path: Path, source: Source) -> Iterator[Row]:
    """The rows of the metadata file, with the name of the picture under ``image``.

    Raises:
        DispError: the file cannot be read.
    """
    found = _csv_rows(path) if path.suffix == ".csv" else json_files.rows(path, Source("lines"))
    for row in found:
        value = row.value
        if isinstance(value, dict):
            if not any(value.get(field) for field in _FIELDS) or set(_ELSEWHERE) & set(value):
                keys = ", ".join(map(str, value))[:200]
                value = ValueError(f"needs file_name, and image under no other key; found {keys}")
            else:
                value = {_FIELDS.get(key, key): each for key, each in value.items()}
        yield Row(row.place, row.number, value)


def save(path: Path, outputs: Iterable[Output], like: tuple[Path, Source] | None = None) -> None:
    """Write the metadata file; the pictures are laid beside it by the caller."""
    named = (
        Output({_ELSEWHERE.get(key, key): each for key, each in output.row.items()}, "", output.key)
        for output in outputs
    )
    if path.suffix != ".csv":
        json_files.save_lines(path, named)
        return
    found = [with_values(output.row, text=True) for output in named]
    text = io.StringIO()
    names = list(dict.fromkeys(key for row in found for key in row))
    # Every cell in quotes: a carriage return within one would be taken for the end of the row.
    writer = csv.DictWriter(text, names, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(found)
    write_text(path, text.getvalue())


def _csv_rows(path: Path) -> Iterator[Row]:
    allow_long_cells()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            check_columns(path, list(reader.fieldnames or ()))
            for number, row in enumerate(reader):
                value: Any = row
                if None in row or None in row.values():
                    value = ValueError("has more or fewer fields than the first line")
                else:
                    value = _filled(row)
                yield Row(f"{path.name}:line {reader.line_num}", number, value)
    except (csv.Error, UnicodeDecodeError) as error:
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
