"""Tables as CSV that a spreadsheet program shows and does not run.

A cell that begins with "=" or the like is a formula to Excel and LibreOffice, and may fetch an address or start a
program. Whoever wrote a dataset can write such a text into it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from disp.files import write_atomically

# What makes a cell a formula, full-width forms included; tab and line ends hide what comes after them.
_ACTIVE = tuple("=+-@\t\r\n＝＋－＠")
_GUARD = "'"
# As long as Python's limit can be on every system.
_LONGEST = (1 << 31) - 1


def inert(text: str) -> str:
    """The text with an apostrophe before it where a spreadsheet program would not take it for a text."""
    return _GUARD + text if text.startswith(_ACTIVE) else text


def without_guard(text: str) -> str:
    """The text that `inert` made this of."""
    return text[1:] if text.startswith(_GUARD) and text[1:].startswith(_ACTIVE) else text


def allow_long_cells() -> None:
    """Let `csv` read cells of any length: its own limit is 131,072 characters, and answers may be longer."""
    csv.field_size_limit(_LONGEST)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str | float]]) -> None:
    """Write a table atomically, UTF-8; texts are made inert, numbers are written as they are."""

    def write(temporary: Path) -> None:
        # Half a character, which UTF-8 cannot hold, is spelled.
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            # Every text in quotes: a line end within one would be taken for the end of the row.
            writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
            writer.writerow(header)
            for row in rows:
                writer.writerow([inert(cell) if isinstance(cell, str) else cell for cell in row])

    write_atomically(path, write)
