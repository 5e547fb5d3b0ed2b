"""What a run will need and take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cyclopts import Parameter

from disp.commands.options import ROWS, Count, Data, Flag, Model, Rows, app
from disp.commands.scoring import PLANNED_REWRITING, PlannedRewriting
from disp.commands.training import PLANNED_TRAINING, PlannedTraining

if TYPE_CHECKING:
    from disp.planning.cards import Fleet

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


@Parameter(name="*")
@dataclass(frozen=True)
class Devices:
    """What a large run is on; with --card the plan tells hours, and with --price cost.

    Attributes:
        rows: Rows of the large run; the data stands for them.
        card: What it runs on, such as h200; a wrong name lists them all.
        cards: How many of them.
        price: Of one of them for an hour, in any currency.
    """

    rows: Count = None
    card: str | None = None
    cards: Count = None
    price: float | None = None

    def fleet(self) -> Fleet | None:
        """What was asked for; None where no card was named.

        Raises:
            DispError: there is no such card, or the others were given without one.
        """
        from disp.errors import DispError
        from disp.planning.cards import Fleet

        if self.card is None:
            if (self.rows, self.cards, self.price) != (None, None, None):
                raise DispError("--rows, --cards and --price need --card, such as --card h200")
            return None
        return Fleet(self.card, self.cards or 1, self.rows or Fleet.rows, self.price)


WEIGHTS, DEVICES = Weights(), Devices()


@app.command
def plan(
    model: Model,
    data: Data,
    /,
    *,
    rewriting: PlannedRewriting = PLANNED_REWRITING,
    training: PlannedTraining = PLANNED_TRAINING,
    weights: Weights = WEIGHTS,
    devices: Devices = DEVICES,
    attack: Flag = False,
    rows: Rows = ROWS,
) -> None:
    """Memory, passes and hours that audit, purification, training and evaluation will take; loads no weights.

    Parameters
    ----------
    attack
        Whether the evaluation measures an attack too.
    """
    from disp.planning.hours import hours_of
    from disp.planning.plan import PlanSettings, default_decode, make_plan

    fleet = devices.fleet()

    settings = PlanSettings(
        dtype=weights.dtype,
        bits=BITS[weights.quantization],
        purify=rewriting.config(),
        train=training.config(quantized=weights.quantization is not None),
        evaluation_batch_size=rewriting.batch_size,
        attacked=attack,
        gen_length=weights.gen_length,
    )
    found = make_plan(model, rows.load(data, pictures=False), settings)
    print(found.to_text())
    if fleet is not None:
        print("", hours_of(found, default_decode(model, weights.gen_length), fleet).to_text(), sep="\n")
