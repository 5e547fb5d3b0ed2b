"""Setting aside rows whose pictures are damaged, before a long run and not in the middle of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from disp.data.dataset import Dataset, set_aside
from disp.data.sample import Sample, batches, check_image
from disp.errors import DispError

# Rows whose pictures are looked at by all cores before progress is told.
AT_ONCE = 256


def without_damaged_pictures(
    dataset: Dataset, *, strict: bool = False, progress: Callable[[int], None] = lambda count: None
) -> Dataset:
    """The dataset without rows whose pictures cannot be read, which are among its ``problems``.

    Args:
        dataset: what was read.
        strict: stop at the first such row instead of setting it aside.
        progress: called with the number of rows finished.

    Raises:
        DispError: no row is left, or ``strict`` met a bad one.
    """
    return set_aside(dataset, _damages(dataset.samples, progress), strict=strict, needed="whose pictures can be read")


def _damages(samples: Sequence[Sample], progress: Callable[[int], None]) -> Iterator[str | None]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in batches(samples, AT_ONCE):
            yield from pool.map(_damage, part)
            progress(len(part))


def _damage(sample: Sample) -> str | None:
    try:
        for image in sample.images:
            check_image(image)
    except DispError as error:
        return str(error)
    return None
