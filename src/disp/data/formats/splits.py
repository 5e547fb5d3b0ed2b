"""Splits of a dataset that lies in a folder, as the names of its files tell them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from disp.errors import DispError
from disp.words import shortened

# How names of splits begin: train, training, testdev, val2017, validation, dev …
_USUAL = re.compile(r"(train|test|val|dev|eval)", re.IGNORECASE)
# The number of a shard at the end of a name: laion_3, train00001, train2, train_part1; the year of val2017 is none.
_NUMBER = re.compile(r"(_?(?:part|shard|chunk|batch)_?\d+|_\d+|(?<!\d)(?!(?:19|20)\d\d$)\d+)$", re.ASCII | re.I)
# A part of a set of files, as `datasets` calls them.
_PART = re.compile(r"(.*?)(\d+)(-of-0*(\d+)\..+)", re.ASCII)


@dataclass(frozen=True)
class Part:
    """What the name of a part tells: train-00001-of-00002.jsonl.

    Attributes:
        of: what the names of all parts of the set have in common.
        number: which part it is, from 0.
        count: how many parts there are.
    """

    of: tuple[str, str]
    number: int
    count: int


def part_of(name: str) -> Part | None:
    """What a file's name tells of the set that it is a part of; None if it is called otherwise."""
    found = _PART.fullmatch(name[:300])
    return Part((found[1], found[3]), int(found[2]), int(found[4])) if found else None


def other_parts(files: Iterable[str], most: int = 1000) -> tuple[str, ...]:
    """The parts that the names of files speak of and that are not among these files, so many of them at most.

    ``train-00000-of-00002.jsonl`` says that there is a ``train-00001-of-00002.jsonl``, whether it is there or not.
    """
    found: dict[tuple[str, str], dict[int, str]] = {}
    counts: dict[tuple[str, str], int] = {}
    for name in files:
        if part := part_of(name):
            found.setdefault(part.of, {})[part.number] = name
            counts[part.of] = part.count
    missing: list[str] = []
    for (first, last), known in found.items():
        digits = len(next(iter(known.values()))) - len(first) - len(last)
        numbers = (number for number in range(counts[first, last]) if number not in known)
        missing += (f"{first}{number:0{digits}}{last}" for number in islice(numbers, most))
    return tuple(missing[:most])


def of_split(files: Sequence[Path], split: str | None) -> list[Path]:
    """Those of the files that are of a split; all of them for None.

    A file is of the split that it is called, without its ending or up to the first hyphen or point: ``test.jsonl`` and
    ``test-00000-of-00002.parquet`` are of ``test``, ``testdev-000.tar`` is not. Where no file is, it may be named
    within: ``imagenet-test-000.tar``.
    """
    if split is None:
        return list(files)
    return [file for file in files if split in (_stem(file.name), _first(file.name))] or [
        file for file in files if _within(file.name) == split
    ]


def splits_of(files: Sequence[Path]) -> list[str]:
    """The splits that the names of files tell, in order; "" where some tell none, as numbers alone do."""
    firsts = {_first(file.name) for file in files}
    within = {_within(file.name) for file in files}
    return sorted(firsts if any(map(_USUAL.match, firsts)) or "" in within else within)


def chosen(folder: Path, files: Sequence[Path], split: str | None, *, loose: bool = False) -> str | None:
    """The split to read of a folder's files; None for all of them.

    Args:
        folder: what the user gave, for messages.
        files: the files that hold rows.
        split: the one asked for; otherwise "train" where the files are of several.
        loose: whether names that are not usual for splits are those of shards of one set.

    Raises:
        DispError: no file is of the split, or none was asked for and there are several without "train".
    """
    if split is not None:
        if not of_split(files, split):
            raise no_split(folder, split, splits_of(files))
        return split
    found = splits_of(files)
    if len(found) == 1 or (loose and not any(map(_USUAL.match, found))):
        return None
    if "train" not in found or "" in found:
        raise DispError(f"{folder} {_told(found)}; to read all, call the files train-0, train-1 and so on")
    return "train"


def no_split(where: Path, split: str, found: Sequence[str]) -> DispError:
    """What is said where nothing is of the split asked for.

    Args:
        where: the file or folder.
        split: what was asked for.
        found: the splits that there are.
    """
    return DispError(f"{where} has no split {shortened(split)!r}; it {_told(found)}, or leave --split out")


def _told(found: Sequence[str]) -> str:
    named = [name for name in found if name]
    others = " and files of none" if named and len(named) < len(found) else ""
    if not named:
        return "names no splits; give another folder"
    return f"has the splits {shortened(', '.join(named), 200)}{others}; choose one with --split"


def _stem(name: str) -> str:
    stem = re.sub(r"\.(jsonl?|ndjson|parquet|tar|tgz)$", "", name.removesuffix(".gz"))
    return "" if stem.isdecimal() else stem


def _first(name: str) -> str:
    """The name up to the first hyphen or point, without a number of a shard."""
    first = re.split(r"[-.]", name, maxsplit=1)[0]
    return "" if first.isdecimal() else _NUMBER.sub("", first)


def _within(name: str) -> str:
    """A usual name of a split as a part of a file's name; "" where there is none."""
    return next((part for part in re.split(r"[-_.]", _stem(name)) if _USUAL.match(part)), "")
