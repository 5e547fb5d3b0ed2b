"""Rows in several JSON files that are parts of one set, such as train-00000-of-00002.jsonl, in one folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from disp.data.dataset import Source
from disp.data.formats import json_files
from disp.data.formats.dialects import is_row
from disp.data.formats.files import Files, Output
from disp.data.formats.row import Row
from disp.data.formats.splits import of_split, part_of


def parts(path: Path, split: str | None = None) -> list[Path]:
    """The JSON files of a folder that are called as parts are, of a split, in order of their numbers."""
    named = [(part, file) for file in path.iterdir() if (part := part_of(file.name)) and file.is_file()]
    found = sorted(named, key=lambda each: (each[0].of, each[0].number))
    return of_split([file for _, file in found if json_files.is_json_name(file.name)], split)


def is_whole(files: Sequence[Path]) -> bool:
    """Whether files are all parts of one set."""
    found = [part for file in files if (part := part_of(file.name))]
    one = len(found) == len(files) and len({part.of for part in found}) == 1 and found[0].count == len(files)
    return one and {part.number for part in found} == set(range(len(files)))


def rows(path: Path, source: Source) -> Iterator[Row]:
    """The rows of all parts.

    Raises:
        DispError: a part cannot be read.
    """
    number = 0
    for file in parts(path, source.split):
        for row in json_files.rows(file, Source(json_files.json_layout(file, is_row))):
            yield replace(row, number=number, file=file.name)
            number += 1


def save(path: Path, outputs: Iterable[Output], like: tuple[Path, Source] | None = None) -> None:
    """Write files of the old names; also those of which no row is left, so that the set is whole."""
    olds = {} if like is None else {file.name: file for file in parts(like[0], like[1].split)}
    written = set()
    for name, group in groupby(outputs, key=lambda output: output.file):
        _save(path / name, group, olds[name])
        written.add(name)
    for name in olds.keys() - written:
        _save(path / name, (), olds[name])


def _save(path: Path, outputs: Iterable[Output], old: Path) -> None:
    lines = json_files.json_layout(old, is_row) == "lines"
    (json_files.save_lines if lines else json_files.save_array)(path, outputs)


PARTS = Files("parts", "JSON in several files", rows, save, "")
