"""The command line: one thin command a verb."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cyclopts import CycloptsError

from disp.commands import answers, baselines, benchmarks, data, defend, demo, experiments, model, planning, review
from disp.commands.options import app
from disp.errors import DispError
from disp.words import printable

__all__ = [
    "answers",
    "app",
    "baselines",
    "benchmarks",
    "data",
    "defend",
    "demo",
    "experiments",
    "main",
    "model",
    "planning",
    "review",
]


# Behind the message of a command that was stopped.
_GOES_ON = "; what lies in a run folder is kept, and the same command goes on from there"


class Terminated(BaseException):
    """SIGTERM, as an exception, so that temporary files are deleted on the way out."""


@contextmanager
def termination_raised() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in the main thread, once."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Entry point: user errors are one line on stderr and exit code 2."""
    try:
        with termination_raised():
            try:
                app(sys.argv[1:], print_error=False, exit_on_error=False)
            finally:
                sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe. Without this, Python would report the same error once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except DispError as error:
        print(f"disp: {printable(' '.join(str(error).splitlines()))}", file=sys.stderr)
        sys.exit(2)
    except CycloptsError as error:
        usage = " ".join(("disp", *(error.command_chain or ()), "--help"))
        print(f"disp: {' '.join(str(error).splitlines())} See `{usage}`.", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            traceback.print_exc()
        else:
            print(f"disp: {printable(' '.join(str(error.filename).splitlines()))}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as left:
        # The printer of help pages leaves with 1, "suspicious or poisoned", where its reader has closed the pipe.
        sys.exit(141 if isinstance(left.__context__, BrokenPipeError) else left.code)
    except Terminated:
        print(f"disp: stopped{_GOES_ON}", file=sys.stderr)
        sys.exit(143)
    except KeyboardInterrupt:
        print(f"disp: interrupted{_GOES_ON}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from disp.halving import short_of_memory

        # Where it is not for want of rows that could be halved: loading, and training.
        if short_of_memory(error):
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            print(
                f"disp: memory is too short ({reason}); load the model in fewer bits (--dtype bfloat16, --quantization "
                "4bit), train fewer rows at once (--batch-size with --accumulate, --gradient-checkpointing), or take a "
                "device with more memory; `disp plan` says what is needed",
                file=sys.stderr,
            )
            sys.exit(2)
        # Exit code 1 means "suspicious or poisoned" to a pipeline.
        traceback.print_exc()
        sys.exit(2)


if __name__ == "__main__":
    main()
