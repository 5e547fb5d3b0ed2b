"""Fuzz one reader with atheris, guided by coverage, from the corpus.

    python tests/abuse/atheris_readers.py manifest -runs=20000

Atheris is no dependency; install it where this is to be run. An input that breaks a reader is written beside the
program; put it into the corpus as NAME-whatever, and `test_fuzz.py` tries it each time.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

import atheris  # noqa: E402  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["disp"]):
    from abuse.targets import CORPUS, attempt


def main() -> None:
    name, options = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory() as folder:
        for file in CORPUS.glob(f"{name}-*"):
            shutil.copy(file, folder)
        atheris.Setup([sys.argv[0], folder, *options], lambda content: attempt(name, content))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
