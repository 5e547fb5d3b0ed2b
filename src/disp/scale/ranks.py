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


@dataclass(frozen=True)
class Place:
    """This process among those that were started together.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        local: its number on its own machine, which says what device is its own.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

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
        DispError: the numbers do not fit together.
    """
    environment = os.environ
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Place(_number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK"))
    if "SLURM_PROCID" in environment:
        if "SLURM_STEP_NUM_TASKS" in environment:
            return Place(_number("SLURM_PROCID"), _number("SLURM_STEP_NUM_TASKS"), _number("SLURM_LOCALID"))
        if "SLURM_NTASKS" in environment and "SLURM_JOB_ID" not in environment:
            return Place(_number("SLURM_PROCID"), _number("SLURM_NTASKS"), _number("SLURM_LOCALID"))
    return Place()


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


def _number(name: str) -> int:
    value = os.environ.get(name, "0")
    try:
        return int(value)
    except ValueError:
        raise DispError(f"{name} must be a number, got {value!r}; it is set by torchrun or Slurm") from None
