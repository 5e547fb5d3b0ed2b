"""Options of commands that run a rival defence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from disp.errors import DispError

if TYPE_CHECKING:
    from disp.baselines.config import BaselineConfig


@Parameter(name="*")
@dataclass(frozen=True)
class Parameters:
    """Parameters of a rival defence.

    Attributes:
        given: A parameter of the defence, as NAME=VALUE, such as --set ratio=0.45; may be given several times.
    """

    given: Annotated[tuple[str, ...], Parameter(name="--set", negative=())] = ()

    def config(self, name: str, *, batch_size: int, seed: int) -> BaselineConfig:
        """The settings that were asked for."""
        from disp.baselines.config import BaselineConfig, parameters_of
        from disp.baselines.table import DEFENCES

        values = {}
        for text in self.given:
            parameter, equals, value = text.partition("=")
            if not equals:
                raise DispError(f"--set takes NAME=VALUE, such as --set ratio=0.45; got {text!r}")
            values[parameter] = value
        plain = BaselineConfig(name, batch_size=batch_size, seed=seed)  # refuses a wrong name
        return replace(plain, parameters=parameters_of(DEFENCES[name], values))

    def answering(self, name: str | None, *, batch_size: int, seed: int) -> BaselineConfig | None:
        """The same for a command that answers under a defence where one is named."""
        from disp.baselines.answering import answering_defence

        if name is None:
            if self.given:
                raise DispError("--set is for --defence; without one there is nothing to be set")
            return None
        config = self.config(name, batch_size=batch_size, seed=seed)
        answering_defence(name)
        return config


PARAMETERS = Parameters()
