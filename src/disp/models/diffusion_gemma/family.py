"""The family of DiffusionGemma."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from disp.models.diffusion_gemma.published import detect
from disp.models.family import About, Family, Published

if TYPE_CHECKING:
    from disp.models.interface import MDLM


def load(folder: Path, **how: Any) -> MDLM:
    """See `disp.models.diffusion_gemma.model.load_official`."""
    from disp.models.diffusion_gemma.model import load_official

    return load_official(folder, **how)


# Its makers publish neither a learning rate nor decoding settings of benchmarks.
FAMILY = Family(
    "diffusion_gemma",
    "DiffusionGemma",
    detect,
    load,
    about=About(
        "diffusion_gemma.md",
        (
            Published(
                ("google/diffusiongemma-26B-A4B-it",),
                "Apache-2.0 (`transformers`)",
                "25.7 B, 4 B a token",
                "up to 280 (266)",
            ),
        ),
        masked="mean of the picture's tokens, a choice",
        open_slots="random tokens",
        prefix_cache="the encoder's: exact",
    ),
)
