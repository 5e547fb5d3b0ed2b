"""What the campaigns share: a process that is forked, killed and looked at, and the count of what was tried.

The parent imports everything once and forks; the child runs one command as `disp` does, on the model of `planted`, and
tells how it ended by its exit status and its output. So a start takes milliseconds instead of seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from planted import load_planted

# Loaded by commands when they run; here once for all children.
import disp.auditing.audit
import disp.baselines.run
import disp.data.convert
import disp.defence.defend
import disp.models.merging
import disp.report.html
import disp.training.train  # noqa: F401
from disp import cli
from disp.models import loading
from disp.training import train as training

# Tries and failures by campaign, for the table at the end.
COUNTS: dict[str, list[int]] = {}


def tried(campaign: str, failed: bool = False, count: int = 1) -> None:
    """Count tries of a campaign; a failure is one that ended neither right nor in one line."""
    counts = COUNTS.setdefault(campaign, [0, 0])
    counts[0] += count
    counts[1] += failed


def table() -> str:
    """Campaign, tries, failures."""
    rows = [(name, str(tries), str(failures)) for name, (tries, failures) in sorted(COUNTS.items())]
    rows.append(("all", *(str(sum(counts[place] for counts in COUNTS.values())) for place in (0, 1))))
    return "\n".join(f"{name:<44} {tries:>7} {failures:>8}" for name, tries, failures in (TITLES, *rows))


TITLES = ("campaign", "tries", "failures")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, negative for a signal, and what it printed on both streams."""

    code: int
    said: str
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def in_one_line(self) -> bool:
        """Whether it ended well, or in an error of one line that is no traceback."""
        lines = [line for line in self.said.splitlines() if line.startswith("disp: ")]
        clean = "Traceback" not in self.said
        return clean and (self.code in (0, 1) or (self.code in (2, 130, 143) and len(lines) == 1))

    @property
    def error(self) -> str:
        return next((line for line in self.said.splitlines() if line.startswith("disp: ")), "")


def planted_instead() -> None:
    """Let the name "planted" and folders that training wrote be loaded as the model of `planted`."""
    loading.check_model = lambda *_, **__: None
    for module in (loading, training):
        module.load_model = lambda name, **options: load_planted(name)


def forked(
    arguments: Sequence[object],
    log: Path,
    *,
    after: float | None = None,
    number: int = signal.SIGKILL,
    before: Callable[[], object] = planted_instead,
) -> Ended:
    """Run a command in a child process.

    Args:
        arguments: of the command line.
        log: file for what it prints.
        after: seconds until it gets a signal; None to let it end.
        number: the signal.
        before: what the child does first.
    """
    start = time.monotonic()
    # A pipe, since limits on the size of files are no limits on it.
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 70
        try:  # whatever happens, the child must not go on as another run of the tests
            os.close(read)
            os.dup2(write, 1)
            os.dup2(write, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            before()
            sys.argv = ["disp", *map(str, arguments)]
            try:
                cli.main()
                code = 0
            except SystemExit as exit:
                code = exit.code if isinstance(exit.code, int) else 0
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            with suppress(BaseException):
                os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(write)
    os.set_blocking(read, False)
    said = bytearray()
    end = None if after is None else start + after
    done = 0
    while not done:
        done, status = os.waitpid(child, os.WNOHANG)
        if end is not None and not done and time.monotonic() >= end:
            os.kill(child, number)
            end = None
        with suppress(BlockingIOError):
            while part := os.read(read, 1 << 16):
                said += part
        time.sleep(0.002)
    os.close(read)
    log.write_bytes(said)
    seconds = time.monotonic() - start
    return Ended(os.waitstatus_to_exitcode(status), said.decode(errors="replace"), seconds)


def contents(folder: Path, skip: Callable[[str], bool]) -> dict[str, bytes]:
    """Bytes of every file below a folder that the comparison is about."""
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if not skip(name)}


def draws(seed: int) -> Random:
    """Draws of a campaign that is the same each time."""
    return Random(seed)
