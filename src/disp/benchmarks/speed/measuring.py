"""Times side by side, and the most memory that tensors hold at once."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

import torch

from disp.errors import DispError
from disp.machine import processor


@dataclass(frozen=True)
class Times:
    """One measurement.

    Attributes:
        seconds: wall time, the median over rounds.
        busy: processor time, the median over rounds. Others on the machine disturb it little, so that ratios are of it
            on a CPU. On a GPU, which it does not see, they are of the wall time.
        ratio: this over the base, the median of the ratios of each round.
    """

    seconds: float
    busy: float
    ratio: float


def side_by_side(
    tasks: Mapping[str, Callable[[], object]], base: str, rounds: int, device: str = "cpu"
) -> dict[str, Times]:
    """Time every task once a round, one after the other.

    Args:
        tasks: what is timed, by name.
        base: the task that the others are compared with.
        rounds: how often.
        device: where they run.

    Raises:
        DispError: there is no such task.
    """
    if base not in tasks:
        raise DispError(f"nothing to compare with: {base!r} is not among {', '.join(tasks)}")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            gc.collect()
            _wait(device)
            start, busy = time.perf_counter(), time.process_time()
            task()
            _wait(device)
            found[name].append((time.perf_counter() - start, time.process_time() - busy))
    counted = 0 if device.startswith("cuda") else 1
    return {
        name: Times(
            median(wall for wall, _ in each),
            median(busy for _, busy in each),
            median(mine[counted] / its[counted] for mine, its in zip(each, found[base], strict=True)),
        )
        for name, each in found.items()
    }


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_bytes(task: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes that tensors made within a call hold at once; what was there before does not count."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        task()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        task()
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def hardware(device: str = "cpu") -> dict[str, Any]:
    """What it ran on, and with which versions."""
    found = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "python": platform.python_version(),
    }
    return found | {package: version(package) for package in ("disp-mdlm", "torch", "transformers")}
