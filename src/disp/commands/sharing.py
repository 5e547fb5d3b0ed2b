"""Options of who does the work: one process, several, or actors of Ray."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import Parameter

from disp.commands.options import Count, Runtime
from disp.progress import ProgressBar, no_progress, progress_bar

if TYPE_CHECKING:
    from disp.scale.workers import Workers


@Parameter(name="*")
@dataclass(frozen=True)
class Sharing:
    """Who does the work. Under torchrun or Slurm's srun the processes share it without further options.

    Attributes:
        engine: Processes of a launcher, where one started several, or actors of Ray, which needs disp[ray].
        actors: Actors of Ray, one a GPU where there are any; 1 if not given.
        batches: How rows are put into batches: as the data has them, or by length, which wastes less on padding.
    """

    engine: Literal["ranks", "ray"] = "ranks"
    actors: Count = None
    batches: Literal["data", "length"] = "data"

    def workers(self, model: str, runtime: Runtime, *, alone: str | None = None) -> Workers:
        """Who does the work.

        Args:
            model: what actors load.
            runtime: how.
            alone: the option with which one process does it.

        Raises:
            DispError: options or a launcher's numbers do not fit together, or several workers are asked to do what one
                process does.
        """
        from disp.errors import DispError
        from disp.scale.ranks import place
        from disp.scale.shared import Ranks
        from disp.scale.workers import Alone

        here = place()
        if self.engine == "ranks" and self.actors is not None:
            raise DispError("--actors is for --engine ray; processes are started by torchrun or Slurm")
        if alone is not None and (here.world > 1 or self.engine == "ray"):
            what = f"there are {here.world}" if here.world > 1 else "--engine ray starts others"
            raise DispError(f"{alone} is for one process, and {what}; start it without a launcher")
        if self.engine == "ranks":
            return Ranks(self.batches, here) if here.world > 1 else Alone(self.batches)
        if here.world > 1:
            raise DispError("--engine ray starts its own workers; start it without a launcher")
        from disp.scale.ray_pool import RayPool, check_installed

        check_installed()
        # Actors may start in another folder.
        named = str(Path(model).absolute()) if Path(model).exists() else model
        return RayPool(self.batches, partial(runtime.load, named), self.actors or 1)

    def runtime(self, runtime: Runtime) -> Runtime:
        """Where the model runs: of several processes on a machine each takes a GPU of its own, where there are any."""
        from disp.scale.ranks import place

        here = place()
        if here.world > 1 and runtime.device is None and runtime.device_map is None:
            import torch

            if count := torch.cuda.device_count():
                return replace(runtime, device=f"cuda:{here.local % count}")
        return runtime


SHARING = Sharing()


def bar_of(workers: Workers) -> ProgressBar:
    """The progress bar, where this process leads."""
    return progress_bar if workers.leads else no_progress
