"""The shape of a module that reads and writes files of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from disp.data.dataset import Source
from disp.data.formats.row import Row
from disp.data.references import TEXTS, Embedded
from disp.errors import DispError
from disp.words import shortened


@dataclass(frozen=True)
class Output:
    """A row to be written.

    Attributes:
        row: its fields; pictures inside it are `Embedded`.
        file: the file of the dataset that it belongs in, where there are several.
        key: the id of its sample.
    """

    row: Mapping[str, Any]
    file: str
    key: str


@dataclass(frozen=True)
class Files:
    """One way to keep rows in files.

    Attributes:
        name: what the user calls it.
        holds: what the files are, for messages and documentation.
        rows: the rows of a file or folder. Raises DispError where it cannot be read.
        save: write rows to a file or folder, with what was read (path and source) as the pattern, or None.
        suffix: how a data file's name ends, "" for a folder.
        is_json: whether a row is to be valid JSON.
        embeds: whether pictures lie in the files, not beside them.
    """

    name: str
    holds: str
    rows: Callable[[Path, Source], Iterator[Row]]
    save: Callable[[Path, Iterable[Output], tuple[Path, Source] | None], None]
    suffix: str
    is_json: bool = True
    embeds: bool = False


def check_columns(file: Path, names: Sequence[str]) -> None:
    """Make sure that no two columns of a table have one name: only one of them would be read.

    Raises:
        DispError: two have.
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DispError(f"{file} has two columns called {shortened(twice)!r}; rename or drop one of them")


def with_values(value: Any, *, text: bool = False) -> Any:
    """A row with what is `Embedded` in it put back.

    Args:
        value: a row or a part of one.
        text: whether bytes are to be base64 text.
    """
    if isinstance(value, Embedded):
        if text and value.form not in TEXTS:
            value = replace(value, form="dict of text")
        return value.value()
    if isinstance(value, Mapping):
        return {key: with_values(each, text=text) for key, each in value.items()}
    if isinstance(value, list | tuple):  # an entry of a table's map is a tuple, and is written from nothing else
        return type(value)([with_values(each, text=text) for each in value])
    return value
