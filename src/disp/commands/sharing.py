"""Options of who does the work: one process, several, or actors of Ray."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from cyclopts import Parameter

from disp.commands.options import Runtime
from disp.progress import ProgressBar, no_progress, progress_bar

if TYPE_CHECKING:
    from disp.scale.workers import Workers


@Parameter(name="*")
@dataclass(frozen=True)
class Sharing:
    """Who does the work. Under torchrun or Slurm's srun the processes share it without further options.

    Attributes:
        batches: How rows are put into batches: as the data has them, or by length, which wastes less on padding.
    """

    batches: Literal["data", "length"] = "data"

    def workers(self, *, alone: str | None = None) -> Workers:
        """Who does the work.

        Args:
            alone: the option with which one process does it.

        Raises:
            DispError: a launcher's numbers do not fit together, or there are several processes for what one does.
        """
        from disp.errors import DispError
        from disp.scale.ranks import place
        from disp.scale.shared import Ranks
        from disp.scale.workers import Alone

        here = place()
        if alone is not None and here.world > 1:
            raise DispError(f"{alone} is for one process, and there are {here.world}; start it without a launcher")
        return Ranks(self.batches, here) if here.world > 1 else Alone(self.batches)

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
