"""The family of Dimple."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from disp.models.dimple.published import GENERATION_PRESETS, detect
from disp.models.family import LLAVA_TRAINING, About, Config, Family, Published, Recipe

if TYPE_CHECKING:
    from disp.models.interface import MDLM
    from disp.models.sizes import Sizes


def load(folder: Path, **how: Any) -> MDLM:
    """See `disp.models.dimple.loading.load_official`."""
    from disp.models.dimple.loading import load_official

    return load_official(folder, **how)


def sizes(config: Config, folder: Path | None = None) -> Sizes:
    """See `disp.models.dimple.sizes.read_sizes`."""
    from disp.models.dimple.sizes import read_sizes

    return read_sizes(config, folder)


# Learning rates, batch sizes and clipping of Dimple's training scripts (arXiv 2505.16990).
RECIPES = {
    "dimple-projector": Recipe(
        {**LLAVA_TRAINING, "method": "projector", "learning_rate": 1e-3},
        "projector",
        "the authors train it autoregressively",
    ),
    # The diffusion stage.
    "dimple": Recipe(
        {
            **LLAVA_TRAINING, "method": "full", "learning_rate": 5e-6, "max_grad_norm": 0.01, "rows_a_step": 128,
            "gradient_checkpointing": True,
        },
        note="gradients clipped at 0.01; the authors freeze the projector",
    ),
}  # fmt: skip

FAMILY = Family(
    "dimple",
    "Dimple",
    detect,
    load,
    sizes,
    recipes=RECIPES,
    presets=lambda config: GENERATION_PRESETS,
    about=About(
        "dimple.md",
        (
            Published(
                ("rp-yu/Dimple-7B",),
                "no licence file in the repository",
                "8.32 B",
                "4 to 1280, one per 28×28 pixels (391)",
            ),
        ),
        prefix_cache="keys and values from the first step: exact in that step, approximate later",
    ),
)
