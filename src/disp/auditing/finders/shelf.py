"""Arrays of one shape that lie on disk, so that memory holds those alone that are being looked at."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from disp.files import named_if_unwritable

# Bytes of the arrays that are looked at together: enough that one look costs more than asking for it. Of larger pieces
# of memory the system's allocator leaves holes that nothing fits into.
PART = 1 << 20


class Shelf:
    """Arrays in a file without a name, in the system's folder of temporary files; it is gone when the shelf is.

    Attributes:
        shape: how many there are, and the shape of each.
        dtype: their type.
    """

    def __init__(self, shape: Sequence[int], dtype: type[np.generic]):
        """An empty shelf for arrays of this shape."""
        self.dtype = np.dtype(dtype)
        self._each, self._count = tuple(shape), 0
        self._folder = Path(tempfile.gettempdir())
        with named_if_unwritable(self._folder):
            self._file = tempfile.TemporaryFile()

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array with one axis more."""
        return self._count, *self._each

    def __len__(self) -> int:
        return self._count

    def append(self, value: np.ndarray) -> None:
        """Lay one more there.

        Raises:
            DispError: there is no space.
        """
        assert value.shape == self._each, f"{value.shape} on a shelf for {self._each}"
        with named_if_unwritable(self._folder):
            self._file.seek(0, os.SEEK_END)
            self._file.write(np.ascontiguousarray(value, self.dtype).data)
            self._file.flush()
        self._count += 1

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those of these numbers, in this order."""
        numbers = np.asarray(rows, np.int64)
        assert not len(numbers) or 0 <= numbers.min() <= numbers.max() < self._count, f"{numbers} of {self._count}"
        found = np.empty((len(numbers), *self._each), self.dtype)
        size = math.prod(self._each) * self.dtype.itemsize
        # What lies side by side is read at once.
        ends = [*(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)] if len(numbers) else []
        begin = 0
        for end in ends:
            self._file.seek(int(numbers[begin]) * size)
            read = self._file.readinto(found[begin:end].data.cast("B"))
            assert read == (end - begin) * size, f"{read} bytes of {(end - begin) * size}"
            begin = end
        return found


# An array may take a shelf's place.
Arrays = np.ndarray | Shelf


def in_parts(arrays: Arrays, rows: Sequence[int] | np.ndarray, most: int = PART) -> Iterator[np.ndarray]:
    """The numbers of some arrays, as many at a time as have ``most`` bytes together."""
    size = math.prod(arrays.shape[1:]) * arrays.dtype.itemsize
    return some(np.asarray(rows, np.int64), max(1, most // size))


def some(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """At most so many of some numbers at a time, in order."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def total(parts: Iterable[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """The sum of all arrays of all parts, float32 of this shape, with the bits of ``np.sum`` over them at once."""
    found = np.zeros(shape, np.float32)
    for part in parts:
        found = np.concatenate((found[None], part)).sum(0)
    return found
