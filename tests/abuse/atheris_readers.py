"""Fuzz one reader with atheris, guided by coverage, from the corpus.

    python tests/abuse/atheris_readers.py manifest -runs=20000
    python tests/abuse/atheris_readers.py all -runs=20000

With "all", the first byte of an input says which reader it is for.
Atheris is no dependency; install it where this is to be run. An input that breaks a reader is written beside the
program; put it into the corpus as NAME-whatever, and `test_fuzz.py` tries it each time.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

import atheris  # noqa: E402  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["disp"]):
    from abuse.targets import TARGETS, attempt, seeds


NAMES = list(TARGETS)


def of_all(content: bytes) -> None:
    if content:
        attempt(NAMES[content[0] % len(NAMES)], content[1:])


def main() -> None:
    name, options = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory() as folder:
        for number, each in enumerate(NAMES):
            for place, content in enumerate(seeds(each) if name in (each, "all") else ()):
                head = bytes([number]) if name == "all" else b""
                Path(folder, f"{each}-{place}").write_bytes(head + content)
        one = of_all if name == "all" else lambda content: attempt(name, content)
        atheris.Setup([sys.argv[0], folder, *options], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
