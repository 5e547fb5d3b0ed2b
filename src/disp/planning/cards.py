"""What was measured on which device: the table `CARDS`, from which hours and cost of a large run are worked out."""

from __future__ import annotations

from dataclasses import dataclass

from disp.errors import DispError, unknown_name


@dataclass(frozen=True)
class Card:
    """Seconds of one row on one device, where they were measured.

    Attributes:
        name: of the device.
        parameters: weights of the model that it was measured with.
        positions: positions of a sequence: what is before the response, and the response.
        forward: seconds of a forward pass.
        backward: seconds of a backward pass to the visual tokens, after its forward pass.
        step: seconds of a training step with LoRA and gradient checkpointing; None where it was not measured.
        source: what was measured, and where it stands.
        measured: whether it was on this device; otherwise it is taken over from another one.
    """

    name: str
    parameters: float
    positions: int
    forward: float
    backward: float
    step: float | None
    source: str
    measured: bool = True


# docs/models/index.md, "Memory": 12.7 s for 128 passes; saliency 0.34 s with 2 probes and 1.11 s with 8. The picture
# has 2,889 visual tokens and 40 line ends; the question and the chat have about 30 tokens, the response 128 slots.
_H200 = Card(
    name="NVIDIA H200",
    parameters=8.43e9,
    positions=3090,
    forward=12.7 / 128,
    backward=(1.11 - 0.34) / 6,
    step=0.64,
    source="LLaDA-V with random weights, bfloat16, one picture of 640×480, batch size 1 (docs/models/index.md)",
)
CARDS: dict[str, Card] = {
    "h200": _H200,
    # Its matrix units are those of the H200; a pass over thousands of positions does not wait for memory.
    "h100": Card(
        name="NVIDIA H100 SXM",
        parameters=_H200.parameters,
        positions=_H200.positions,
        forward=_H200.forward,
        backward=_H200.backward,
        step=_H200.step,
        source=f"nothing; taken over from the H200, whose matrix units it has: {_H200.source}",
        measured=False,
    ),
    # One thread, float32: 12 layers of width 384, 600 visual tokens, 32 of text and 64 slots. Another probe costs 1.32
    # forward passes.
    "cpu-core": Card(
        name="core of an AMD EPYC (AVX2)",
        parameters=26e6,
        positions=696,
        forward=0.53,
        backward=1.32 * 0.53,
        step=None,
        source="a model of 26 million parameters with random weights, float32, one thread, 696 positions",
    ),
}
# A step with the prompt kept from an earlier one, by a whole forward pass: one CPU core, 632 positions before 64 slots.
CACHED_STEP = 0.125


def card_of(name: str) -> Card:
    """A device of the table.

    Raises:
        DispError: it has none of this name.
    """
    if name not in CARDS:
        raise unknown_name("card", name, CARDS)
    return CARDS[name]


@dataclass(frozen=True)
class Fleet:
    """Devices for a large run.

    Attributes:
        card: their name in `CARDS`.
        cards: how many there are.
        rows: rows of the run.
        price: of one device for an hour, in any currency; None if it does not matter.
    """

    card: str
    cards: int = 1
    rows: int = 1_000_000
    price: float | None = None

    def __post_init__(self) -> None:
        card_of(self.card)
        if self.cards < 1 or self.rows < 1:
            raise DispError(f"cards and rows must be at least 1, got {self.cards} and {self.rows}")
        if self.price is not None and not self.price >= 0:
            raise DispError(f"price must not be negative, got {self.price}")
