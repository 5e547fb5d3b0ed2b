"""One process at a time in a run folder, and what a killed one left there."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from disp.errors import DispError
from disp.files import TEMPORARY, named_if_unwritable
from disp.processes import number

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
P = ParamSpec("P")
R = TypeVar("R")
# Descriptor of the lock file of each folder that this process has for itself, and how often it asked for it.
_held: dict[Path, tuple[int, int]] = {}


def alone(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function have the folder that its argument ``out`` names for itself while it runs; see `locked`.

    Where several processes run it together, as its argument ``workers`` says, the one that leads holds the lock.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments
        if not getattr(given.get("workers"), "leads", True):
            return function(*args, **kwargs)
        with locked(Path(given["out"])):
            return function(*args, **kwargs)

    return run


@contextmanager
def locked(folder: Path, *, of_all: bool = False) -> Iterator[None]:
    """Keep other processes out of a run folder.

    The system lifts the lock when the process dies, however it dies. What a killed process left half-written is then
    deleted by the next one. Where several processes train together, the first one holds the lock for all of them. A
    file system without locks is used without one.

    Args:
        folder: made if it is not there.
        of_all: whether each of several processes takes a lock, where each has a folder of its own.

    Raises:
        DispError: another process works in the folder, it cannot be written, or what a launcher says is no number.
    """
    if fcntl is None or (number("RANK") > 0 and not of_all):
        yield
        return
    folder = folder.absolute()
    if folder in _held:
        descriptor, count = _held[folder]
        _held[folder] = descriptor, count + 1
        try:
            yield
        finally:
            _held[folder] = descriptor, count
        return
    made = not folder.exists()
    with named_if_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _acquired(folder)
    _held[folder] = descriptor, 1
    try:
        yield
    finally:
        del _held[folder]
        # Still locked: whoever opened the file in the meantime sees that it is gone, and makes a new one.
        with suppress(OSError):
            (folder / LOCK).unlink()
        os.close(descriptor)
        if made:
            with suppress(OSError):  # only where nothing was written
                folder.rmdir()


@contextmanager
def waiting_for(file: Path) -> Iterator[None]:
    """Wait until no other process is within the same block for the same file, which is made and stays."""
    with named_if_unwritable(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            with suppress(OSError):  # no locks on this file system
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _acquired(folder: Path) -> int:
    file = folder / LOCK
    while True:
        left_over = file.exists()
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            by = f"process {owner}" if owner.isdigit() else "another process"
            raise DispError(
                f"{folder} is in use by {by}; wait until it is done, or choose another folder (--out)"
            ) from None
        except OSError:
            return descriptor  # no locks on this file system
        try:
            if os.fstat(descriptor).st_ino == file.stat().st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    with suppress(OSError):  # a full disk; the number is only for a message
        os.write(descriptor, str(os.getpid()).encode())
    if left_over:
        _sweep(folder)
    return descriptor


# How safetensors calls a file of weights while it writes it.
_OF_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")


def _sweep(folder: Path) -> None:
    """Delete what a killed process left half-written; folders with a lock of their own are swept by whoever has it."""
    for place, below, files in os.walk(folder):
        below[:] = [name for name in below if not os.path.lexists(os.path.join(place, name, LOCK))]
        for name in files:
            if name.startswith(TEMPORARY) or _OF_SAFETENSORS.fullmatch(name):
                with suppress(OSError):
                    os.unlink(os.path.join(place, name))


def _forget() -> None:
    """A forked process holds no lock: its copies of the descriptors would keep one after the owner's death."""
    for descriptor, _ in _held.values():
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
