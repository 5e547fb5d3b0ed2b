"""What a run will take, and tasks for public benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from disp.commands.options import ROWS, Data, Flag, Model, Out, Rows, Seed, app
from disp.commands.scoring import PLANNED_REWRITING, PlannedRewriting
from disp.commands.training import PLANNED_TRAINING, PlannedTraining
from disp.progress import progress_bar

BITS: dict[str | None, Literal[4, 8] | None] = {None: None, "4bit": 4, "8bit": 8}


@Parameter(name="*")
@dataclass(frozen=True)
class Weights:
    """What a plan has to know of the model's weights.

    Attributes:
        dtype: Of weights and activations.
        quantization: Of the language model's weights, as with the other commands.
        gen_length: Response slots; the model's own if not given.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    quantization: Literal["4bit", "8bit"] | None = None
    gen_length: int | None = None


WEIGHTS = Weights()


@app.command
def plan(
    model: Model,
    data: Data,
    /,
    *,
    rewriting: PlannedRewriting = PLANNED_REWRITING,
    training: PlannedTraining = PLANNED_TRAINING,
    weights: Weights = WEIGHTS,
    attack: Flag = False,
    rows: Rows = ROWS,
) -> None:
    """Memory and passes that audit, purification, training and evaluation will take; loads no weights.

    Parameters
    ----------
    attack
        Whether the evaluation measures an attack too.
    """
    from disp.planning.plan import PlanSettings, make_plan

    settings = PlanSettings(
        dtype=weights.dtype,
        bits=BITS[weights.quantization],
        purify=rewriting.config(),
        train=training.config(),
        evaluation_batch_size=rewriting.batch_size,
        attacked=attack,
        gen_length=weights.gen_length,
    )
    print(make_plan(model, rows.load(data, pictures=False), settings).to_text())


@app.command
def tasks(data: Data, /, *, out: Out, attack: Path | None = None, seed: Seed = 0, rows: Rows = ROWS) -> None:
    """Write a held-out dataset as tasks for lmms-eval; see docs/benchmarks.md.

    Parameters
    ----------
    attack
        The manifest.json that `disp poison` wrote, for the two tasks that measure the ASR.
    """
    from disp.attacks.poison import load_attack
    from disp.benchmarks.export import write_tasks

    dataset = rows.load(data)
    with progress_bar("writing", len(dataset.samples)) as advance:
        names = write_tasks(dataset, out, attack=load_attack(attack) if attack else None, seed=seed, progress=advance)
    print(f"--include_path {out} --tasks {','.join(names)}")
