"""What a dataset holds, and what is wrong with it, before anything long is run on it."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from disp.data.damaged import AT_ONCE, without_damaged_pictures
from disp.data.dataset import Dataset, Problem
from disp.data.formats.table import FILES
from disp.data.sample import batches, picture_digests, picture_formats
from disp.errors import DispError
from disp.words import named_briefly

# Longest side of a picture in pixels, up to which it is counted together with others.
_SIZES = (64, 224, 336, 512, 1024, 2048, 4096)
_SHOWN = 10


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        data: the data file or folder.
        unread: files with rows that lie beside it and were not read.
        stored: what kind of files it is in.
        formats: how many rows are written in which way.
        rows: rows that can be used.
        turns: their questions and answers.
        without_picture: how many of the rows have no picture.
        linked: how many times a row names a picture that a link leads to, outside the image folder.
        pictures: different pictures.
        picture_formats: how many of them are JPEG, PNG and so on.
        picture_sizes: how many have a longest side of at most so many pixels.
        smallest: the smallest, as width × height.
        largest: the largest.
        same_picture: pictures that several rows show, and those rows.
        same_id: rows with the id of an earlier one.
        same_text: rows whose questions and answers, word for word, an earlier row has too.
        same_text_and_picture: rows that have both in common with an earlier one.
        set_aside: rows that cannot be used.
        reasons: how many of them for which reason, with the first of each.
    """

    data: str
    unread: list[str]
    stored: str
    formats: dict[str, int]
    rows: int
    turns: int
    without_picture: int
    linked: int
    pictures: int
    picture_formats: dict[str, int]
    picture_sizes: dict[str, int]
    smallest: str | None
    largest: str | None
    same_picture: dict[str, int]
    same_id: int
    same_text: int
    same_text_and_picture: int
    set_aside: int
    reasons: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return asdict(self)

    def to_text(self) -> str:
        """The report as lines."""
        lines = [
            f"{self.data}: {self.stored}, rows in the format {_counts(self.formats)}",
            *([f"beside it and not read: {named_briefly(self.unread)}"] if self.unread else ()),
            f"{self.rows} rows with {self.turns} turns; {self.without_picture} rows have no picture",
            f"{self.pictures} pictures: {_counts(self.picture_formats)}",
        ]
        if self.linked:
            lines.append(f"{self.linked} names of pictures lead out of the image folder by links")
        if self.pictures:
            lines.append(
                f"pictures by their longest side in pixels: {_counts(self.picture_sizes)} "
                f"(smallest {self.smallest}, largest {self.largest})"
            )
        doubles = {
            f"pictures, shown by {self.same_picture['rows']} rows": self.same_picture["pictures"],
            "ids": self.same_id,
            "texts": self.same_text,
            "texts with their pictures": self.same_text_and_picture,
        }
        lines.append("doubles: " + (", ".join(f"{count} {name}" for name, count in doubles.items() if count) or "none"))
        lines.append(f"{self.set_aside} rows set aside")
        for reason in self.reasons[:_SHOWN]:
            lines.append(f"  {reason['rows']} × {reason['reason']} (first: {reason['first']})")
        if len(self.reasons) > _SHOWN:
            lines.append(f"  and {len(self.reasons) - _SHOWN} other reasons")
        return "\n".join(lines)


def check(dataset: Dataset, *, progress: Callable[[int], None] = lambda count: None) -> Report:
    """Look through a dataset: each picture is read whole.

    Args:
        dataset: what was read.
        progress: called with the number of rows finished.

    Raises:
        DispError: no row has pictures that can be read.
    """
    dataset = without_damaged_pictures(dataset, progress=progress)
    samples = dataset.samples
    files = list(dict.fromkeys(file for sample in samples for file in sample.images if isinstance(file, Path)))
    digests = dict(zip(files, picture_digests(files), strict=True))
    # Of files with the same content one is a picture.
    distinct = list({digest: file for file, digest in reversed(digests.items())}.values())
    kinds: list[tuple[str, tuple[int, int]]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in batches(distinct, AT_ONCE):
            kinds += pool.map(_kind, part)
    sizes = sorted((size for _, size in kinds), key=lambda size: (size[0] * size[1], size))
    shown: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        for file in sample.images:
            if isinstance(file, Path):
                shown[digests[file]].add(sample.id)
    shared = [rows for rows in shown.values() if len(rows) > 1]
    texts = [tuple((turn.prompt, turn.response) for turn in sample.turns) for sample in samples]
    pictured = [tuple(digests[file] for file in sample.images if isinstance(file, Path)) for sample in samples]
    return Report(
        data=str(dataset.path),
        unread=list(dataset.unread),
        stored=FILES[dataset.source.files].holds if dataset.source else "not from files",
        formats=dataset.formats,
        rows=len(samples),
        turns=sum(len(sample.turns) for sample in samples),
        without_picture=dataset.without_picture,
        linked=dataset.linked,
        pictures=len(distinct),
        picture_formats=dict(Counter(kind for kind, _ in kinds).most_common()),
        picture_sizes=_by_size([max(size) for size in sizes]),
        smallest="{}×{}".format(*sizes[0]) if sizes else None,
        largest="{}×{}".format(*sizes[-1]) if sizes else None,
        same_picture={"pictures": len(shared), "rows": len(set().union(*shared))},
        same_id=dataset.renamed,
        same_text=_repeated(texts),
        same_text_and_picture=_repeated(zip(texts, pictured, strict=True)),
        set_aside=len(dataset.problems),
        reasons=_reasons(dataset.problems),
    )


def _kind(file: Path) -> tuple[str, tuple[int, int]]:
    try:
        with Image.open(file, formats=picture_formats()) as image:
            return image.format or "unknown", image.size
    except (OSError, ValueError, SyntaxError) as error:
        raise DispError(
            f"{file}: cannot be read as an image ({error}); it has changed while it was looked at"
        ) from None


def _by_size(sides: Iterable[int]) -> dict[str, int]:
    found: Counter[int] = Counter(next((size for size in _SIZES if side <= size), 0) for side in sides)
    names = [(size, f"up to {size}") for size in _SIZES] + [(0, f"more than {_SIZES[-1]}")]
    return {name: found[size] for size, name in names if found[size]}


def _repeated(values: Iterable[Hashable]) -> int:
    return sum(count - 1 for count in Counter(values).values())


def _reasons(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    """Reasons that differ in names and numbers alone are one; the first of them stands for all."""
    groups: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        kind = re.sub(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"|\([^)]*\)|/\S+|\d+", "…", problem.reason)
        groups[kind].append(problem)
    found = [{"reason": group[0].reason, "rows": len(group), "first": group[0].place} for group in groups.values()]
    return sorted(found, key=lambda each: -int(str(each["rows"])))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) or "none"
