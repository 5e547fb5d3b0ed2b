"""Options of who does the work: one process, several, or actors of Ray."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from disp.commands.options import BatchSize, Count, Runtime
from disp.errors import install
from disp.progress import ProgressBar, no_progress, progress_bar

if TYPE_CHECKING:
    from disp.data.sample import Sample
    from disp.planning.batch_size import Work
    from disp.scale.workers import Workers


@Parameter(name="*")
@dataclass(frozen=True)
class Sharing:
    """Who does the work. Under torchrun or Slurm's srun the processes share it without further options.

    Attributes:
        engine: Processes of a launcher, where one started several, or actors of Ray.
        actors: Actors of Ray, one a GPU where there are any; 1 if not given.
        batches: How rows are put into batches: as the data has them, or by length, which wastes less on padding.
    """

    engine: Annotated[
        Literal["ranks", "ray"],
        Parameter(
            help="Processes of a launcher, where one started several, or actors of Ray, which is an extra: "
            f"{install('ray')}."
        ),
    ] = "ranks"
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
        from disp.processes import place
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
        from disp.processes import place

        here = place()
        if here.world > 1 and runtime.device is None and runtime.device_map is None:
            import torch

            if count := torch.cuda.device_count():
                return replace(runtime, device=f"cuda:{here.local % count}")
        return runtime

    def batch_size(
        self,
        asked: BatchSize,
        model: str,
        samples: Sequence[Sample],
        runtime: Runtime,
        workers: Workers,
        *,
        work: Work,
        folder: Path | None,
    ) -> int:
        """Rows a pass.

        Args:
            asked: how many, or "auto" for what there is room for by the plan.
            model: what runs.
            samples: what it runs on.
            runtime: how, with this process's device; see `runtime`.
            workers: who works.
            work: what is done.
            folder: of the run, for what was chosen; None where it is nobody else's concern.

        Raises:
            DispError: the model cannot be planned for, or the device is none.
        """
        if isinstance(asked, int):
            return asked
        from disp.commands.planning import BITS
        from disp.errors import DispError
        from disp.models.loading import chosen_device
        from disp.planning.batch_size import batch_size_for, free_bytes
        from disp.planning.plan import PlanSettings
        from disp.training.config import TrainConfig

        if runtime.device_map is not None:
            raise DispError(
                "--batch-size auto is for a model on one device; give a number with --device-map, and it is halved "
                "where memory is too short"
            )
        device = chosen_device(runtime.device)

        def choose() -> int:
            settings = PlanSettings(
                dtype=runtime.dtype or ("float32" if device == "cpu" else "bfloat16"),
                bits=BITS[runtime.quantization],
                train=TrainConfig(method="lora"),  # nothing is trained, and this goes with every precision
                gen_length=runtime.gen_length,
            )
            free = free_bytes(device, self._beside(device))
            size = batch_size_for(model, samples, settings, work, device=device, free=free)
            told = "" if free is None else f"; {free / (1 << 30):.1f} GiB are free"
            print(f"batch size {size}, by the plan{told}", file=sys.stderr)
            return size

        return choose() if folder is None else workers.agreed(folder / "batch-size.json", choose)

    def _beside(self, device: str) -> int:
        """Processes of this run that share its device."""
        if self.engine == "ray":
            return 1 + (self.actors or 1) if device == "cpu" else 1
        import torch

        from disp.processes import place

        here = place().beside
        return here if device == "cpu" else -(-here // max(1, torch.cuda.device_count()))


SHARING = Sharing()


def bar_of(workers: Workers) -> ProgressBar:
    """The progress bar, where this process leads."""
    return progress_bar if workers.leads else no_progress
