"""Batches that memory is too short for: they are done in parts, half as large until a part fits.

No result depends on the size of a batch, so a run goes on where it would have stopped. What fits beside a model is
remembered for as long as the model lives, so that the next batches begin with it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from disp.errors import DispError

T = TypeVar("T")
R = TypeVar("R")
# What devices and allocators say, in small letters: CUDA, ROCm and MPS; cuBLAS; the two of torch for a CPU.
SIGNS = ("out of memory", "alloc_failed", "not enough memory", "can't allocate memory")
# What a RuntimeError says that is of a device or its driver.
_OF_DEVICE = ("CUDA", "HIP error", "cuDNN", "NVIDIA driver")
# Rows that fit, by the name of what is done with them; for each model.
_fits: WeakKeyDictionary[Any, dict[str, int]] = WeakKeyDictionary()


class TooLittleMemory(DispError):
    """Not even one row fits."""


def fitting(
    model: object, step: Callable[[Sequence[T]], R], items: Sequence[T], size: int
) -> Iterator[tuple[Sequence[T], R]]:
    """Do something with items in order, at most ``size`` at a time, and fewer where memory is too short.

    Args:
        model: beside which the rows must fit.
        step: what is done with a batch; it leaves nothing behind when it fails.
        items: what it is done with.
        size: items a batch, at most.

    Yields:
        The items of each batch, or of each part of one, and what the step returned.

    Raises:
        DispError: ``size`` is less than one, or memory is too short for one item alone (`TooLittleMemory`).
    """
    if size < 1:
        raise DispError(f"batch_size must be at least 1, got {size}")
    for start in range(0, len(items), size):
        yield from in_parts(model, step, items[start : start + size])


def in_parts(model: object, step: Callable[[Sequence[T]], R], batch: Sequence[T]) -> Iterator[tuple[Sequence[T], R]]:
    """`fitting` of one batch."""
    fits, name, begin = _known(model), _name(step), 0
    while begin < len(batch):
        part = batch[begin : begin + fits.get(name, len(batch))]
        try:
            found = step(part)
        except (MemoryError, RuntimeError, TooLittleMemory) as error:
            if not short_of_memory(error):
                raise
            if len(part) == 1:
                raise TooLittleMemory(_advice(part[0], error)) from None
            if isinstance(error, TooLittleMemory):
                fits.clear()  # of a step within this one: beside fewer rows more will fit
        else:
            yield part, found
            begin += len(part)
            continue
        # Here and not above: the error holds on to what the step had in memory.
        fits[name] = (len(part) + 1) // 2
        _freed()
        _say(f"memory is too short for {len(part)} rows at once: going on with {fits[name]}")


def short_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was too short."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | TooLittleMemory):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


def of_machine(error: BaseException) -> bool:
    """Whether an error is of the machine, its memory included, so that a file that was being read may be whole."""
    of_device = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OF_DEVICE)
    return of_device or short_of_memory(error)


def _known(model: object) -> dict[str, int]:
    try:
        return _fits.setdefault(model, {})
    except TypeError:  # what cannot be watched, such as None
        return {}


def _name(step: Callable[..., Any]) -> str:
    while isinstance(step, partial):
        step = step.func
    return f"{step.__module__}.{step.__qualname__}"


def _freed() -> None:
    """Give back what nobody holds any more; the allocator may have it in pieces of the wrong size."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _advice(item: object, error: BaseException) -> str:
    if isinstance(error, TooLittleMemory):
        return str(error)
    what = getattr(item, "key", "one row")
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return (
        f"memory is too short for {what} alone ({reason}); load the model in fewer bits (--dtype bfloat16, "
        "--quantization 4bit), give shorter answers (--gen-length), or take a device with more memory"
    )


@cache
def _say(text: str) -> None:
    """Once."""
    print(text, file=sys.stderr, flush=True)
