"""Results that several workers have appended to files of their own, and putting them together."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from disp.files import append_jsonl, read_lines, write_atomically
from disp.scale.stage import Row, Stage

PART = "rows.jsonl"


class Tail:
    """The lines of a file that grows.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path):
        """``path`` need not be there yet."""
        self.path = path
        self._end = 0
        self._inode = 0

    def new(self) -> Iterator[tuple[int, int, Row]]:
        """Where each line begins and ends that was not seen before, and its row; all anew if the file is another."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return
        if status.st_ino != self._inode or status.st_size < self._end:
            self._end, self._inode = 0, status.st_ino
        for end, line, row in read_lines(self.path, self._end):
            yield end - len(line), end, row
            self._end = end


class Results:
    """Where the row of each item of a stage is, in whichever file.

    Attributes:
        found: by key the file, and where its line begins and ends.
    """

    def __init__(self, stage: Stage[Any]):
        """Nothing is read yet; see `look`."""
        self.found: dict[str, tuple[Path, int, int]] = {}
        self._stage = stage
        self._wanted = frozenset(stage.keys)
        self._tails: dict[Path, Tail] = {}
        self._seen, self._whole = (0, 0, 0), False

    @property
    def complete(self) -> bool:
        """Whether every item has its row."""
        return len(self.found) == len(self._wanted)

    def whole(self) -> bool:
        """Whether the file of the stage has them all: then nothing beside it is needed."""
        assert self._stage.file is not None, "read from files"
        try:
            status = self._stage.file.stat()
        except FileNotFoundError:
            return not self._wanted
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        if seen != self._seen:
            left = set(self._wanted)
            for _, _, row in read_lines(self._stage.file):
                left.discard(row.get("key", ""))
            self._seen, self._whole = seen, not left
        return self._whole

    def look(self) -> int:
        """Look for rows that were not there before; how many items have one now that had none."""
        before = len(self.found)
        assert self._stage.file is not None, "read from files"
        for path in (self._stage.file, *part_files(self._stage)):
            tail = self._tails.setdefault(path, Tail(path))
            for begin, end, row in tail.new():
                if row.get("key") in self._wanted:
                    self.found.setdefault(row["key"], (path, begin, end))
        return len(self.found) - before


def part_files(stage: Stage[Any]) -> list[Path]:
    """The files of all workers of a stage, those of runs before included; none where they are just being deleted.

    The process that puts them together deletes them then, while others may still look for new rows.
    """
    with suppress(FileNotFoundError):
        return sorted(stage.parts.glob(f"*/{PART}"))
    return []


def part_file(stage: Stage[Any], worker: str) -> Path:
    """The file that one worker appends to."""
    return stage.parts / worker / PART


def in_order(stage: Stage[Any]) -> None:
    """Write the file of a stage anew: rows of other stages as they are, then one row an item, in the items' order.

    The rows of workers that are not in the file yet come into it, and what the workers left is deleted.
    """
    assert stage.file is not None, "a stage that is put in order has a file"
    results = Results(stage)
    results.look()
    wanted = frozenset(stage.keys)

    def write(temporary: Path) -> None:
        handles = {path: path.open("rb") for path in {path for path, _, _ in results.found.values()}}
        try:
            with temporary.open("wb") as file:
                for _, line, row in read_lines(stage.file or temporary):
                    if row.get("key") not in wanted:
                        file.write(line)
                for key in stage.keys:
                    if key in results.found:
                        path, begin, end = results.found[key]
                        handles[path].seek(begin)
                        file.write(handles[path].read(end - begin))
        finally:
            for handle in handles.values():
                handle.close()

    # The parts, which are on the disk, are deleted next.
    write_atomically(stage.file, write, lasting=True)
    clear(stage)


def rows_of(stage: Stage[Any]) -> Iterator[Row]:
    """The rows of a stage's items, from its file when that has them all."""
    assert stage.file is not None, "a stage that is finished has a file"
    wanted = frozenset(stage.keys)
    for _, _, row in read_lines(stage.file):
        if row["key"] in wanted:
            yield row


def clear(stage: Stage[Any]) -> None:
    """Delete what workers left beside the file of a stage."""
    shutil.rmtree(stage.parts, ignore_errors=True)
    with suppress(OSError):  # not there, or with what is of other items
        stage.parts.parent.rmdir()


def fold_in(stage: Stage[Any]) -> bool:
    """Append what workers left to the file of a stage, and whether there was anything."""
    assert stage.file is not None, "there is a file where there are parts"
    if not stage.parts.is_dir():
        return False
    results = Results(stage)
    results.look()
    for path in part_files(stage):
        for end, line, row in read_lines(path):
            if results.found.get(row.get("key", "")) == (path, end - len(line), end):
                append_jsonl(stage.file, [row])
    clear(stage)
    return True
