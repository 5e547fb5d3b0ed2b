"""Actors of Ray as workers: each holds the model on a device of its own and works on the batches that it is given.

Plain actors, not Ray Data: what is in a batch is fixed beforehand, and Ray Data cuts its blocks as it likes. The driver
hands out batches, appends what comes back to a file of its own, and writes the rows in order when all is there. An
actor that dies is started again by Ray, and its batch is given once more.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from disp.errors import DispError, install
from disp.files import append_jsonl, read_finished_jsonl
from disp.halving import in_parts
from disp.models.interface import MDLM
from disp.scale.parts import Results, in_order, part_file, rows_of
from disp.scale.stage import Row, Stage, T
from disp.scale.workers import Workers

# Batches that an actor has at once: what is repeated when it dies, or when the driver does. It waits for the driver
# some milliseconds a batch, and a batch of a model worth sharing takes seconds.
IN_FLIGHT = 1
# How often Ray starts an actor again that dies, and a batch with it, until the run stops with an error.
RESTARTS, RETRIES = 16, 3


@dataclass(frozen=True)
class RayPool(Workers):
    """Actors of Ray.

    Attributes:
        load: loads the model, in an actor.
        actors: how many there are; each has a GPU of its own where there are as many, or a share of one.
        cpus: of one actor, as Ray counts them. Less than one: where actors take all that Ray counts, nothing is left
            for Ray itself, and it waits for ever.
        handles: the actors, once they were started.
    """

    load: Callable[[], MDLM] | None = None
    actors: int = 1
    cpus: float = 0.25
    handles: list[Any] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        if self.actors < 1:
            raise DispError(f"actors must be at least 1, got {self.actors}")

    def share(self, model: MDLM, stage: Stage[T], keep: Callable[[Row], None], progress: Callable[[int], None]) -> None:
        """The batches, by whichever actor is free.

        Raises:
            DispError: ``step`` does, or actors keep dying.
        """
        assert stage.file is not None, "what actors have done is kept in a file"
        results = Results(stage)
        results.look()
        progress(len(results.found))
        if not results.complete:
            part = part_file(stage, "driver")
            for _ in read_finished_jsonl(part):  # takes out what a kill has torn
                pass
            left = [batch for batch in stage.batches if any(stage.keys[index] not in results.found for index in batch)]
            for rows in self._done(stage, left):
                append_jsonl(part, [row for row in rows if row["key"] not in results.found])
                progress(results.look())
        if not results.whole() or stage.parts.exists():
            in_order(stage)
        for row in rows_of(stage):
            keep(row)

    def _done(self, stage: Stage[T], batches: list[Any]) -> Iterator[list[Row]]:
        """The rows of each batch, as they come."""
        import ray

        self.start()
        waiting = iter(batches)
        step = ray.put(stage.step)
        free = [actor for _ in range(IN_FLIGHT) for actor in self.handles]
        running: dict[Any, Any] = {}
        while True:
            while free and (batch := next(waiting, None)) is not None:
                actor = free.pop(0)
                running[actor.work.remote(step, [stage.items[index] for index in batch])] = actor
            if not running:
                return
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            free.append(running.pop(done))
            try:
                yield ray.get(done)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, DispError):
                    raise DispError(str(error.cause)) from None
                raise
            except ray.exceptions.RayActorError as error:
                raise DispError(
                    f"an actor of Ray died {RETRIES + 1} times at one batch ({' '.join(str(error).split())[:200]}); "
                    "look at its log, lower --batch-size if memory was short, and start the same command again"
                ) from None

    def start(self) -> None:
        """Start the actors, where they are not there yet; `share` does so itself."""
        import ray

        if self.handles:
            return
        _connected(ray)
        have = ray.cluster_resources().get("GPU", 0)
        actor = ray.remote(_Actor).options(
            num_cpus=self.cpus,
            num_gpus=min(1.0, have / self.actors) if have else 0,
            max_restarts=RESTARTS,
            max_task_retries=RETRIES,
        )
        self.handles.extend(actor.remote(self.load) for _ in range(self.actors))


class _Actor:
    """The model on one device, loaded once."""

    def __init__(self, load: Callable[[], MDLM]):
        import torch

        # Bits on a CPU hang on the number of threads; all workers have one, as torchrun's have.
        torch.set_num_threads(1)
        self.model = load()

    def work(self, step: Callable[..., list[Row]], items: list[Any]) -> list[Row]:
        """The rows of one batch."""
        return [row for _, rows in in_parts(self.model, partial(step, self.model), items) for row in rows]


def check_installed() -> None:
    """Make sure that there is Ray.

    Raises:
        DispError: there is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise DispError(f"--engine ray needs Ray: {install('ray')}")


def _connected(ray: Any) -> None:
    """Ray: the cluster that ``RAY_ADDRESS`` names, as in a job of one, otherwise started here; it ends with us."""
    if ray.is_initialized():
        return
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level="error")
        return
    # Two CPUs more than there are: actors count little, and Ray's own work must find room.
    cpus = max(4, (os.cpu_count() or 1) + 2)
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error")
