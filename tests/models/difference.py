"""Comparisons with what each family's published code computed for a tiny model; one module a family."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """One recorded quantity compared with ours.

    Attributes:
        quantity: its name in the folder's ``io.safetensors`` or ``meta.json``.
        largest: the largest absolute difference; for exact quantities the number of elements that differ.
        tolerance: what is allowed; 0 for exact quantities.
    """

    quantity: str
    largest: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.largest <= self.tolerance  # false for NaN
