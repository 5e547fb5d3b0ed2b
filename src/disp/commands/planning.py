"""What a run will need and take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cyclopts import Parameter

from disp.commands.options import ROWS, Data, Flag, Model, Rows, app
from disp.commands.scoring import PLANNED_REWRITING, PlannedRewriting
from disp.commands.training import PLANNED_TRAINING, PlannedTraining

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
