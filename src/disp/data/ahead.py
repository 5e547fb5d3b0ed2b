"""Pictures that are decoded in threads before they are asked for, while a device computes.

`disp.data.sample.open_image` takes what is decoded already, or waits for it. An error is raised there and not before:
at the row that it belongs to. Pillow decodes without the interpreter's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from PIL import Image

# Pictures at most that are decoded and not yet asked for, and threads that decode: a photograph of 12 megapixels takes
# 36 MB and a tenth of a second.
MOST, THREADS = 32, 2


class Ahead:
    """Pictures that will be asked for."""

    def __init__(self, decode: Callable[[Path], Image.Image]):
        """``decode`` opens one, in a thread."""
        self._decode = decode
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="pictures")
        self._decoded: dict[Path, Future[Image.Image]] = {}
        self._later: deque[Path] = deque()
        self._past: list[Path] = []
        self._now: list[Path] = []

    def announce(self, paths: Iterable[Path]) -> None:
        """To be called when a batch begins, with what the one after it will ask for.

        What was announced for the one before it, and nobody has asked for, is forgotten.
        """
        new = list(dict.fromkeys(paths))
        gone = set(self._past).difference(self._now, new)
        for path in gone:
            if left := self._decoded.pop(path, None):
                left.cancel()
        waiting = [path for path in self._later if path not in gone]
        self._later = deque(dict.fromkeys([*waiting, *(path for path in new if path not in self._decoded)]))
        self._past, self._now = self._now, new
        self._fill()

    def take(self, path: Path) -> Image.Image | None:
        """A picture, for whoever asks first; None where it was not announced, or its turn has not come.

        Raises:
            DispError: ``decode`` does.
        """
        found = self._decoded.pop(path, None)
        if found is None and path in self._later:
            self._later.remove(path)
        self._fill()
        return None if found is None else found.result()

    def close(self) -> None:
        """Forget everything."""
        self._decoded.clear()
        self._later.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fill(self) -> None:
        while self._later and len(self._decoded) < MOST:
            path = self._later.popleft()
            self._decoded[path] = self._pool.submit(self._decode, path)


_active: ContextVar[Ahead | None] = ContextVar("pictures ahead", default=None)


def taken(path: Path) -> Image.Image | None:
    """`Ahead.take`, where there are threads that decode ahead."""
    active = _active.get()
    return None if active is None else active.take(path)


@contextmanager
def ahead(decode: Callable[[Path], Image.Image]) -> Iterator[Ahead]:
    """Threads that decode ahead for whoever asks in this thread."""
    active = Ahead(decode)
    before = _active.set(active)
    try:
        yield active
    finally:
        _active.reset(before)
        active.close()
