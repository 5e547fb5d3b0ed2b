"""Commands in processes of their own, which fork from this one: PyTorch is loaded already."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from disp import cli

WORDS = ("cat", "dog", "boat", "tree", "apple", "hat", "bee", "cow")
LONG = "Is there a boat, or two dogs and a tree? What is to the left?"


def write_set(folder: Path, count: int) -> Path:
    """LLaVA JSON with pictures of three sizes; every fifth row has a second turn."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        draw = np.random.default_rng(number)
        side = (24, 32, 40, 24)[number % 4]
        pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:06}.png")
        one, other = draw.choice(WORDS, 2)
        said = [("human", "<image>\nDescribe the picture."), ("gpt", f"I see a {one} and a {other}.")]
        if number % 5 == 0:
            said += [("human", LONG), ("gpt", f"I see a {other}.")]
        talk = [{"from": who, "value": text} for who, text in said]
        rows.append({"id": f"r{number}", "image": f"{number:06}.png", "conversations": talk})
    (folder / "data.json").write_text(json.dumps(rows))
    return folder


def started(arguments: Sequence[object], log: Path, environment: Mapping[str, str]) -> int:
    """A process that runs a command; its number."""

    def command():
        sys.argv = ["disp", *map(str, arguments)]
        cli.main()

    return forked(command, log, environment)


def forked(work: Callable[[], object], log: Path, environment: Mapping[str, str]) -> int:
    """A process that does something; its number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:  # whatever happens, the child must not go on as another run of the tests
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(environment)
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        sys.stdout.flush()
    except BaseException:
        with suppress(BaseException):
            os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def ended(process: int, seconds: float = 240.0) -> int:
    """The exit code of a process, when it has ended; after so many seconds it is killed."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise TimeoutError(f"process {process} has not ended within {seconds:g} seconds")
        time.sleep(0.005)


def rank(number: int, world: int) -> dict[str, str]:
    """The environment of one of several processes, as torchrun sets it."""
    return {"RANK": str(number), "WORLD_SIZE": str(world), "LOCAL_RANK": str(number)}


def files(folder: Path) -> dict[str, bytes]:
    """What a run left behind, by name."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items()}
