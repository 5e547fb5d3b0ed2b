"""How many rows a pass there is room for, by the plan: what ``--batch-size auto`` stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from disp.data.dataset import Dataset
from disp.data.sample import Sample
from disp.errors import DispError
from disp.planning.memory import Memory
from disp.planning.plan import PlanSettings, make_plan
from disp.purification.config import PurifyConfig
from disp.suspicion.support import COUNTERFACTUAL_ROWS
from disp.training.config import TrainConfig

# What a run does with rows: answer alone, or measure saliency and suspicion too.
Work = Literal["answers", "scores"]
MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Fit:
    """How large batches are made.

    Attributes:
        share: of the free memory, what a plan may fill. Plans were within 1% of what LLaDA-V took at full size, and
            tests hold them to within a quarter on small models (docs/models/index.md, tests/planning/test_memory.py).
        most: rows a pass, at most; more make no device quicker whose passes are of hundreds of positions a row.
        most_on_cpu: the same on a CPU; it is the default where no size is asked for.
    """

    share: float = 0.8
    most: int = 256
    most_on_cpu: int = 32

    def most_on(self, device: str) -> int:
        """Rows a pass at most."""
        return self.most_on_cpu if device == "cpu" else self.most


def batch_size_for(
    model: str,
    samples: Sequence[Sample],
    settings: PlanSettings,
    work: Work,
    *,
    device: str,
    free: int | None,
    fit: Fit = Fit(),
) -> int:
    """The largest power of two of rows whose passes fit beside the weights.

    Args:
        model: "builtin", a folder or a hub id; no weights are read.
        samples: what is worked on; their pictures and texts say how long a row is.
        settings: precision and response slots.
        work: what is done with them.
        device: where, such as "cpu" or "cuda:1".
        free: bytes that weights and passes may take there; None if it is not known, which gives `Fit.most_on_cpu`.
        fit: see `Fit`.

    Returns:
        At least 1, even where the plan says that one row does not fit: the plan may be wrong.

    Raises:
        DispError: the model cannot be planned for; see `make_plan`.
    """
    if free is None:
        return fit.most_on_cpu
    usual = PurifyConfig()
    one = replace(usual, batch_size=1, scoring=replace(usual.scoring, batch_size=1))
    # Nothing is trained here; a plan wants a method all the same, and this one goes with every model.
    asked = replace(settings, purify=one, train=TrainConfig(method="lora"), decode=None)
    memory = make_plan(model, Dataset(tuple(samples), Path(), Path()), asked).memory
    room = int(fit.share * free) - memory["encoding"].weights
    rows = max(1, room // max(1, _row_bytes(memory, work)))
    return min(fit.most_on(device), 1 << rows.bit_length() - 1)


def free_bytes(device: str, processes: int = 1) -> int | None:
    """Memory of a device that is free now, for each of the processes that share it; None where nobody says.

    Raises:
        DispError: there is no such device.
    """
    if device.startswith("cuda"):
        try:
            free, _ = torch.cuda.mem_get_info(torch.device(device))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise DispError(f"device {device!r} cannot be asked for its memory ({error})") from None
        return free // processes
    if device != "cpu":
        return None
    known = [value for value in (_available(), _left_to_group()) if value is not None]
    return min(known) // processes if known else None


def _row_bytes(memory: Mapping[str, Memory], work: Work) -> int:
    """What one row takes at most; all of it grows with the rows of a pass."""
    encoding, saliency, decoding = (memory[name].activations for name in ("encoding", "saliency", "decoding"))
    return max(encoding, decoding) if work == "answers" else max(encoding, saliency, COUNTERFACTUAL_ROWS * decoding)


def _available() -> int | None:
    """What Linux could give without swapping, in bytes."""
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _left_to_group() -> int | None:
    """What a container or a job of Slurm may still take, in bytes."""
    try:
        limit, used = ((GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return None if limit == "max" else max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return None
