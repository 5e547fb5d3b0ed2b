"""Setting aside what a model cannot take, before a long run and not in the midst of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from disp.data.llava import Dataset, Problem
from disp.data.sample import Sample, batches, check_image
from disp.errors import DispError
from disp.models.interface import MDLM

# Rows whose pictures are looked at by all cores before progress is told.
AT_ONCE = 256


def usable(
    dataset: Dataset, model: MDLM, *, strict: bool = False, progress: Callable[[int], None] = lambda count: None
) -> Dataset:
    """The dataset without rows whose pictures are damaged or whose answers the model has too few slots for.

    Args:
        dataset: what was read.
        model: what it is for.
        strict: stop at the first bad row instead of setting it aside.
        progress: called with the number of rows finished.

    Raises:
        DispError: no row is left, or ``strict`` met a bad one.
    """
    kept: list[Sample] = []
    problems = list(dataset.problems)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in batches(dataset.samples, AT_ONCE):
            for sample, damage in zip(part, pool.map(_damage, part), strict=True):
                reason = damage or _unfit(sample, model)
                place = f"{dataset.path.name}:sample {sample.id!r}"
                if reason is None:
                    kept.append(sample)
                elif strict:
                    raise DispError(f"{place}: {reason}")
                else:
                    problems.append(Problem(place, reason))
            progress(len(part))
    if not kept:
        raise DispError(f"{dataset.path} holds no row that the model can take; the first: {problems[-1].reason}")
    return replace(dataset, samples=tuple(kept), problems=tuple(problems))


def _damage(sample: Sample) -> str | None:
    try:
        for image in sample.images:
            check_image(image)
    except DispError as error:
        return str(error)
    return None


def _unfit(sample: Sample, model: MDLM) -> str | None:
    try:
        model.encode_responses([turn.response for turn in sample.turns], model.gen_length)
    except DispError as error:
        return str(error)
    return None
