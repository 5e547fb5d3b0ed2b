"""Setting aside rows whose pictures are damaged, before a long run and not in the midst of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from disp.data.llava import Dataset, Problem, place_of
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
    kept: list[Sample] = []
    problems = list(dataset.problems)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in batches(dataset.samples, AT_ONCE):
            for sample, damage in zip(part, pool.map(_damage, part), strict=True):
                if damage is None:
                    kept.append(sample)
                elif strict:
                    raise DispError(f"{place_of(dataset, sample)}: {damage}")
                else:
                    problems.append(Problem(place_of(dataset, sample), damage))
            progress(len(part))
    if not kept:
        raise DispError(f"{dataset.path} holds no row whose pictures can be read; the first: {problems[-1].reason}")
    return replace(dataset, samples=tuple(kept), problems=tuple(problems))


def _damage(sample: Sample) -> str | None:
    try:
        for image in sample.images:
            check_image(image)
    except DispError as error:
        return str(error)
    return None
