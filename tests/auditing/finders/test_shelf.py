"""Arrays on disk: the same as in memory, and not in memory."""

import io
import tracemalloc

import numpy as np
import pytest

from disp.auditing.finders.shelf import PART, Shelf, in_parts, total
from disp.errors import DispError


def filled(arrays, dtype=np.float32):
    shelf = Shelf(arrays.shape[1:], dtype)
    for each in arrays:
        shelf.append(each)
    return shelf


def test_arrays_are_found_again_in_the_order_asked_for():
    arrays = np.random.default_rng(0).integers(0, 256, (5, 2, 3), np.uint8)
    shelf = filled(arrays, np.uint8)
    assert len(shelf) == 5 and shelf.shape == arrays.shape and shelf.dtype == arrays.dtype
    for rows in ([0, 1, 2, 3, 4], [3, 0, 3], np.array([4]), range(2, 4), []):
        assert (shelf[rows] == arrays[np.asarray(rows, int)]).all()
    shelf.append(arrays[1])
    assert (shelf[[5, 0]] == arrays[[1, 0]]).all()


def test_a_sum_over_parts_has_the_bits_of_a_sum_at_once():
    """Single precision: another order would round in another way."""
    arrays = np.random.default_rng(0).standard_normal((70, 3, PART // 4 // 3 // 32)).astype(np.float32)
    shelf, rows = filled(arrays), np.arange(0, 70, 2)
    parts = list(in_parts(shelf, rows))
    assert len(parts) > 1 and (np.concatenate(parts) == rows).all()
    assert (total((shelf[part] for part in parts), arrays.shape[1:]) == arrays[rows].sum(0)).all()
    assert not total([], (2, 3)).any()


def test_memory_holds_no_more_than_is_looked_at():
    one = np.zeros((256, 1024), np.float32)
    tracemalloc.start()
    try:
        shelf = Shelf(one.shape, np.float32)
        for _ in range(32):
            shelf.append(one)
        assert all(len(shelf[rows]) for rows in in_parts(shelf, range(32)))
        assert tracemalloc.get_traced_memory()[1] < 1.5 * PART < 32 * one.nbytes / 2
    finally:
        tracemalloc.stop()


def test_a_full_disk_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    with pytest.raises(DispError, match=rf"{tmp_path} cannot be written .*free some space"):
        Shelf((2,), np.float32).append(np.zeros(2, np.float32))
