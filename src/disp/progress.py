"""Progress of long steps, with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

# Opened with a description and a total; what it yields is called with the number of items finished since the last call.
ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def no_progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """The silent progress bar."""
    yield lambda count: None


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; elsewhere a plain line on stderr now and then, and one at the end.

    Args:
        description: what is being done.
        total: how many items there are.

    Yields:
        A function to be called with the number of items finished since the last call.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column

        console = Console(stderr=True)
        # What is left is for the description, of which the end is cut; a narrow terminal goes without the time so far.
        bars, counts, times = min(40, console.width // 6), 2 * len(f"{total:,}") + 1, 22 if console.width >= 80 else 13
        room = max(8, min(60, console.width - bars - counts - times - 4))
        name = Column(width=min(room, max(32, len(description))), no_wrap=True, overflow="ellipsis")
        columns: list[ProgressColumn] = [TextColumn("{task.description}", table_column=name), BarColumn(bars)]
        columns.append(MofNCompleteColumn())
        if console.width >= 80:
            columns.append(TimeElapsedColumn())
        with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(description, total=total)
            yield lambda count: bar.advance(task, count)
        return
    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and 0 < done < total:
            last = now
            left = (now - start) / done * (total - done)
            print(f"{description} {done}/{total}, {clock(left)} left", file=sys.stderr, flush=True)

    yield advance
    print(f"{description} {done}/{total}, took {clock(time.monotonic() - start)}", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
