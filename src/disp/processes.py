"""Which of several processes this one is, as torchrun or Slurm tell it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from disp.errors import DispError

# What torchrun, accelerate and MPI tell their processes, by name and by how names begin.
LAUNCHERS = frozenset(
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
)
LAUNCHED = ("TORCHELASTIC_", "PMI_", "OMPI_", "MV2_")
# The numbers among them that libraries read, and the least that each can be; -1 is nobody's rank.
NUMBERS = {"RANK": -1, "WORLD_SIZE": 1, "LOCAL_RANK": -1, "LOCAL_WORLD_SIZE": 1}


@dataclass(frozen=True)
class Place:
    """This process among those that were started together.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        local: its number on its own machine, which says what device is its own.
        beside: how many of them are on its machine, itself included.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    beside: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world or self.local < 0:
            raise DispError(
                f"rank {self.rank} of {self.world} processes (local rank {self.local}) cannot be; look at RANK, "
                "WORLD_SIZE and LOCAL_RANK"
            )


def place() -> Place:
    """This process's place; the only one where no launcher says anything.

    torchrun, accelerate and others set ``RANK`` and ``WORLD_SIZE``. Slurm's ``srun`` sets ``SLURM_PROCID``, and
    ``SLURM_NTASKS`` or ``SLURM_STEP_NUM_TASKS``. A batch script has the first two as well, though it is one process:
    there the third is missing, and a job has a number.

    Raises:
        DispError: one of the numbers is none, or they do not fit together.
    """
    check_launcher()
    environment = os.environ
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Place(number("RANK"), number("WORLD_SIZE"), number("LOCAL_RANK"), number("LOCAL_WORLD_SIZE", 1))
    if "SLURM_PROCID" in environment:
        tasks = None
        if "SLURM_STEP_NUM_TASKS" in environment:
            tasks = number("SLURM_STEP_NUM_TASKS")
        elif "SLURM_NTASKS" in environment and "SLURM_JOB_ID" not in environment:
            tasks = number("SLURM_NTASKS")
        if tasks is not None:
            here = max(1, number("SLURM_NTASKS_PER_NODE", 1))
            return Place(number("SLURM_PROCID"), tasks, number("SLURM_LOCALID"), here)
    return Place()


def devices_of_run() -> int:
    """How many devices share a step of a training: as many as processes were started to train together.

    That is what torchrun and ``accelerate launch`` do. Processes of ``srun`` alone know nothing of each other there.

    Raises:
        DispError: what a launcher says is no number.
    """
    check_launcher()
    return number("WORLD_SIZE", 1)


def check_launcher() -> None:
    """Make sure that what torchrun and the like say can be read, before a library reads it.

    Raises:
        DispError: one of `NUMBERS` is set, and is no number, or too small.
    """
    for name, least in NUMBERS.items():
        if number(name, least) < least:
            raise DispError(f"{name} must be at least {least}, got {number(name)}; it is set by torchrun")


@contextmanager
def as_if_alone() -> Iterator[None]:
    """Let libraries see nothing of the other processes, for what one process does while the others wait.

    Otherwise accelerate would gather them all, and wait for ever.
    """
    hidden = {name: value for name, value in os.environ.items() if name in LAUNCHERS or name.startswith(LAUNCHED)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def number(name: str, usual: int = 0) -> int:
    """What a launcher says under a name; ``usual`` where it says nothing.

    Raises:
        DispError: it is no number. An empty text is none either.
    """
    value = os.environ.get(name)
    try:
        return usual if value is None else int(value)
    except ValueError:
        raise DispError(f"{name} must be a number, got {value!r}; it is set by torchrun or Slurm") from None
