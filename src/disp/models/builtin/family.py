"""The family of the model that comes with `disp`: a small one in LLaDA-V's arrangement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from disp.models.family import Config, Family

if TYPE_CHECKING:
    from disp.models.interface import MDLM
    from disp.models.sizes import Sizes


def detect(config: Config) -> bool:
    """Whether a config.json is of a model of this family."""
    return config.get("model_type") == "disp_llada_v"


def load(folder: Path, **how: Any) -> MDLM:
    """See `disp.models.library.load_pretrained`."""
    from disp.models.builtin.model import BuiltinModel
    from disp.models.library import load_pretrained

    return load_pretrained(BuiltinModel, folder, **how)


def sizes(config: Config, folder: Path | None = None) -> Sizes:
    """See `disp.models.builtin.sizes.read_sizes`."""
    from disp.models.builtin.sizes import read_sizes

    return read_sizes(config, folder)


FAMILY = Family(
    "builtin", "built-in model", detect, load, sizes, options=(), keeps_layout=False, folder=Path(__file__).parent
)
