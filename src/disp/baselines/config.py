"""How a rival defence is run, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from disp.baselines.interface import Filter, RivalDefence
from disp.baselines.table import DEFENCES
from disp.data.dataset import Dataset
from disp.decoding.config import DecodeConfig
from disp.errors import DispError, check_counts, unknown_name
from disp.typed import typed


@dataclass(frozen=True)
class BaselineConfig:
    """How a rival defence is run.

    Attributes:
        defence: its name in `disp.baselines.table.DEFENCES`.
        parameters: its own configuration; its defaults if None.
        decode: how a defence that answers decodes; the model's own settings with the profile "exact" if None.
        batch_size: assistant turns a pass.
        seed: seed of every random draw.
    """

    defence: str
    parameters: Any = None
    decode: DecodeConfig | None = None
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.defence not in DEFENCES:
            raise unknown_name("defence", self.defence, DEFENCES)
        check_counts(self, "batch_size")
        if self.decode is not None and isinstance(DEFENCES[self.defence], Filter):
            raise DispError(f"{self.defence} answers nothing; leave the settings of decoding out (decode, --steps)")
        expected = DEFENCES[self.defence].config
        if self.parameters is None:
            object.__setattr__(self, "parameters", expected())
        elif not isinstance(self.parameters, expected):
            raise DispError(
                f"{self.defence} takes a {expected.__name__}, got a {type(self.parameters).__name__}; leave the "
                "parameters out for its defaults"
            )


@dataclass(frozen=True)
class Defended:
    """What a rival defence made of a fine-tuning set.

    Attributes:
        dataset: the rows that are left, or all rows with new answers.
        scores: by id how suspicious each measured sample is; empty for a defence that answers.
        dropped: ids of the samples that a filter took out.
        rewritten: ids of the samples that were answered anew.
        note: how it was decided, one sentence; empty for a defence that answers.
        truth: of a filter, where the planted attack is known: how well its scores and what it dropped find the poisoned
            rows; see `disp.auditing.truth.measured_against`.
    """

    dataset: Dataset
    scores: Mapping[str, float]
    dropped: tuple[str, ...]
    rewritten: tuple[str, ...]
    note: str
    truth: Mapping[str, float | None] = field(default_factory=dict)


def parameters_of(defence: RivalDefence, given: Mapping[str, str]) -> Any:
    """A defence's configuration with the parameters that are given as text.

    Raises:
        DispError: a name is unknown, or a value is of another type or out of range.
    """
    values: dict[str, Any] = {}
    for name, text in given.items():
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return typed(defence.config, values, f"the configuration of {defence.name}")
