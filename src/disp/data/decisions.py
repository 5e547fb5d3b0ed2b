"""What a person decided of single rows: whether they are poisoned. It wins over what an audit found."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disp.data.cells import allow_long_cells, without_guard
from disp.errors import DispError
from disp.words import shortened

WORDS = ("yes", "no", "skip")


@dataclass(frozen=True)
class Decision:
    """One decision.

    Attributes:
        id: of the row.
        decision: "yes" where the row is poisoned, "no" where it is honest, "skip" where the person cannot say.
        who: the person, if the file says it.
        when: the time, if the file says it.
        place: file and line.
    """

    id: str
    decision: str
    who: str | None = None
    when: str | None = None
    place: str = ""

    def to_json(self) -> dict[str, str]:
        """The decision as a line of ``decisions.jsonl`` has it."""
        given = {"id": self.id, "decision": self.decision, "who": self.who, "when": self.when}
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class Decisions:
    """Decisions by id of a row; `NO_DECISIONS` where nobody decided anything."""

    by_id: Mapping[str, Decision]

    def ids(self, word: str) -> frozenset[str]:
        """The rows that were decided so."""
        return frozenset(key for key, each in self.by_id.items() if each.decision == word)

    def over(self, flagged: Iterable[str], order: Iterable[str]) -> tuple[str, ...]:
        """The rows that count as poisoned: the flagged ones and each "yes", without each "no".

        Args:
            flagged: ids, as an audit or a threshold has it.
            order: ids of all rows.
        """
        poisoned = (frozenset(flagged) | self.ids("yes")) - self.ids("no")
        return tuple(key for key in order if key in poisoned)

    def only(self, word: str) -> Decisions:
        """The decisions with this word."""
        return Decisions({key: each for key, each in self.by_id.items() if each.decision == word})

    def identity(self) -> dict[str, str]:
        """What a run depends on."""
        return {key: each.decision for key, each in sorted(self.by_id.items()) if each.decision != "skip"}

    def counts(self) -> dict[str, int]:
        """How many rows were decided how."""
        return {word: len(self.ids(word)) for word in WORDS}


NO_DECISIONS = Decisions({})


def read_decisions(path: Path, ids: Collection[str], data: Path) -> Decisions:
    """Read a file of decisions: CSV with the columns ``id`` and ``decision``, or JSON lines with these keys.

    ``who`` and ``when`` are kept; other columns are not looked at, so that ``flagged.csv`` with a column ``decision``
    is such a file. A row of it without a decision is not decided yet. Where a row is decided twice, both with a time as
    in the file that ``disp review`` appends to, the later line wins.

    Args:
        path: the file.
        ids: of the rows of the dataset.
        data: the dataset's file, for messages.

    Raises:
        DispError: the file cannot be read, names no row of the dataset, or names one twice, or has a decision that is
            none. The message has the line.
    """
    found: dict[str, Decision] = {}
    for each in _decisions(path):
        known = _row_of(each, ids, data)
        before = found.get(known)
        if before is not None and not (before.when and each.when):
            line = before.place.rpartition(":")[2]
            raise DispError(f"{each.place}: {shortened(known)!r} is already decided in line {line}; keep one of them")
        found[known] = Decision(known, each.decision, each.who, each.when, each.place)
    return Decisions(found)


def append_decision(path: Path, decision: Decision) -> None:
    """Append a decision and flush it to the disk; where that fails, nothing of it stays in the file.

    Raises:
        OSError: it cannot be written.
    """
    line = json.dumps(decision.to_json(), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    with path.open("ab") as file:
        end = file.tell()
        try:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def mend_log(path: Path) -> None:
    """Make a file ready for `append_decision`: a torn last line is cut off, a whole one gets the end it lacks."""
    if not path.exists():
        return
    data = path.read_bytes()
    last = data.rpartition(b"\n")[2]
    if not last:
        return
    try:
        _decision(json.loads(last), path.name)
    except (ValueError, DispError):
        with path.open("r+b") as file:
            file.truncate(len(data) - len(last))
    else:
        with path.open("ab") as file:
            file.write(b"\n")


def latest(path: Path) -> dict[str, str]:
    """By id the last decision in a file of JSON lines; empty where there is no file.

    Raises:
        DispError: a line is no decision.
    """
    return {each.id: each.decision for each in _decisions(path)} if path.exists() else {}


def _decisions(path: Path) -> Iterator[Decision]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DispError(f"{path}: no such file with decisions") from None
    except UnicodeDecodeError as error:
        raise DispError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from None
    except OSError as error:
        raise DispError(f"{path}: cannot be read ({error.strerror}); give a file with decisions") from None
    return _from_lines(path, text) if text.lstrip().startswith("{") else _from_csv(path, text)


def _from_lines(path: Path, text: str) -> Iterator[Decision]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DispError(f"{path}:{number}: not valid JSON ({error}); mend the line or delete it") from None
        yield _decision(value, f"{path}:{number}")


def _from_csv(path: Path, text: str) -> Iterator[Decision]:
    head = text.split("\n", 1)[0]
    allow_long_cells()
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        if missing := {"id", "decision"} - set(names):
            raise DispError(
                f"{path}:1: no column {' and no column '.join(sorted(missing))}; the first line of a CSV file with "
                "decisions names its columns: id,decision"
            )
        for cells in reader:
            place = f"{path}:{reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                raise DispError(f"{place}: {len(cells)} cells under {len(names)} columns; mend the line")
            value: dict[str, Any] = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
            if (value.get("decision") or "").strip():
                yield _decision(value, place)
    except csv.Error as error:
        raise DispError(f"{path}:{reader.line_num}: not valid CSV ({error}); mend the line") from None


def _decision(value: Any, place: str) -> Decision:
    if not isinstance(value, dict):
        raise DispError(f"{place}: a decision must be an object with id and decision, found {type(value).__name__}")
    key, word = value.get("id"), value.get("decision")
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    if not isinstance(key, str) or not key:
        raise DispError(f"{place}: a decision without the id of a row; add it")
    said = word.strip().lower() if isinstance(word, str) else word
    if said not in WORDS:
        shown = shortened(json.dumps(word, ensure_ascii=False))
        raise DispError(f"{place}: the decision on {shortened(key)!r} must be yes, no or skip, not {shown}")
    who, when = (str(value[name]) if value.get(name) else None for name in ("who", "when"))
    return Decision(key, str(said), who, when, place)


def _row_of(decision: Decision, ids: Collection[str], data: Path) -> str:
    """The id of the row, which in a table that a spreadsheet program has opened may have an apostrophe before it."""
    plain = without_guard(decision.id)
    known = [key for key in dict.fromkeys((decision.id, plain)) if key in ids]
    if len(known) == 2:
        raise DispError(
            f"{decision.place}: {shortened(decision.id)!r} may stand for two rows, with and without the apostrophe; "
            "name it in a .jsonl file"
        )
    if not known:
        raise DispError(
            f"{decision.place}: no row that can be used in {data} has the id {shortened(decision.id)!r}; correct it, "
            "or delete the line"
        )
    return known[0]
