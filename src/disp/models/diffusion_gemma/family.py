"""The family of DiffusionGemma."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from disp.models.diffusion_gemma.published import detect
from disp.models.family import About, Config, Family, Published

if TYPE_CHECKING:
    from disp.models.interface import MDLM
    from disp.models.sizes import Sizes


def load(folder: Path, **how: Any) -> MDLM:
    """See `disp.models.diffusion_gemma.loading.load_official`."""
    from disp.models.diffusion_gemma.loading import load_official

    return load_official(folder, **how)


def sizes(config: Config, folder: Path | None = None) -> Sizes:
    """See `disp.models.diffusion_gemma.sizes.read_sizes`."""
    from disp.models.diffusion_gemma.sizes import read_sizes

    return read_sizes(config, folder)


# Its makers publish neither a learning rate nor decoding settings of benchmarks.
FAMILY = Family(
    "diffusion_gemma",
    "DiffusionGemma",
    detect,
    load,
    sizes,
    about=About(
        "diffusion_gemma.md",
        (
            Published(
                ("google/diffusiongemma-26B-A4B-it",),
                "Apache-2.0 (`transformers`)",
                "25.8 B, 4 B a token",
                "up to 280 (266)",
            ),
        ),
        masked="mean of the picture's tokens; other choices exist",
        open_slots="random tokens",
        prefix_cache="the encoder's: exact",
    ),
)
