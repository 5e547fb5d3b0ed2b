"""A dataset: its samples, where they came from, and the rows that were set aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from disp.data.formats.row import Dialect, Origin
from disp.data.sample import Sample
from disp.errors import DispError
from disp.words import printable, shortened


@dataclass(frozen=True)
class Problem:
    """A row that was set aside: where it is, and why; in characters that can be shown in a line of a terminal."""

    place: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", printable(self.place))
        object.__setattr__(self, "reason", printable(self.reason))


@dataclass(frozen=True)
class Source:
    """How a dataset is stored, for writing it back in the same way.

    Attributes:
        files: how the rows lie in files; a key of `disp.data.formats.table.FILES`.
        declared: how the rows are read by the columns and tags that LLaMA-Factory's dataset_info.json declares.
        entry: that file's entry for the data, and its name.
        split: the part of the dataset that was read, where it has several.
        left_out: the fields that were neither read nor will be written; see `disp.data.loading.load_dataset`.
    """

    files: str
    declared: Dialect | None = None
    entry: tuple[str, Mapping[str, Any]] | None = None
    split: str | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A data file with its image folder.

    Attributes:
        samples: the usable rows, in order.
        path: the data file, or the folder of a format that has no single file.
        image_root: folder that image names are relative to.
        problems: the rows that were set aside.
        renamed: how many rows have an id that an earlier row has; see `disp.data.loading.load_dataset`.
        source: how the rows are stored; None for a dataset that was not read from files.
        unread: files with rows that lie beside those that were read; see `disp.data.beside.unread`.
        unread_parts: names of further parts of the files that were read, on which their own names tell; see
            `disp.data.formats.splits.other_parts`.
        linked: how many times a row names a picture that a link in the image folder leads to, outside of it.
        nulled: how many rows of JSON have NaN, which was read as null.
        unkept: fields that JSON cannot hold, such as bytes, with the number of their rows; they are no
            metadata of the samples, and go back into the row alone.
    """

    samples: tuple[Sample, ...]
    path: Path
    image_root: Path
    problems: tuple[Problem, ...] = ()
    renamed: int = 0
    source: Source | None = None
    unread: tuple[str, ...] = ()
    unread_parts: tuple[str, ...] = ()
    linked: int = 0
    nulled: int = 0
    unkept: Mapping[str, int] = field(default_factory=dict)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The fields that were neither read nor will be written; none of a dataset that was not read from files."""
        return self.source.left_out if self.source else ()

    @property
    def formats(self) -> dict[str, int]:
        """How many samples were read from rows of which format; see `disp.data.formats.table.FORMATS`."""
        origins = (sample.origin for sample in self.samples)
        return dict(Counter(origin.dialect.name for origin in origins if isinstance(origin, Origin)))

    @property
    def without_picture(self) -> int:
        """How many samples have no picture."""
        return sum(not sample.images for sample in self.samples)


def set_aside(dataset: Dataset, faults: Iterable[str | None], *, strict: bool, needed: str) -> Dataset:
    """The dataset without its faulty rows, which are among its ``problems``.

    Args:
        dataset: what was read.
        faults: for each sample what is wrong with it, None if nothing is.
        strict: stop at the first fault instead of setting the row aside.
        needed: what a row is to be, for the message where none is left.

    Raises:
        DispError: no row is left, or ``strict`` met a fault.
    """
    kept: list[Sample] = []
    problems = list(dataset.problems)
    for sample, fault in zip(dataset.samples, faults, strict=True):
        place = f"{dataset.path.name}:sample {shortened(sample.id)!r}"
        if fault is None:
            kept.append(sample)
        elif strict:
            raise DispError(f"{place}: {fault}")
        else:
            problems.append(Problem(place, fault))
    if not kept:
        raise DispError(f"{dataset.path} holds no row {needed}; {problems[-1].reason}")
    return replace(dataset, samples=tuple(kept), problems=tuple(problems))
