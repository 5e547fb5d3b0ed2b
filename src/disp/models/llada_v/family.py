"""The family of published LLaDA-V checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from disp.models.family import LLAVA_TRAINING, About, Config, Family, Published, Recipe
from disp.models.llada_v.published import GENERATION_PRESETS, detect

if TYPE_CHECKING:
    from disp.models.interface import MDLM
    from disp.models.sizes import Sizes


def load(folder: Path, **how: Any) -> MDLM:
    """See `disp.models.llada_v.loading.load_official`."""
    from disp.models.llada_v.loading import load_official

    return load_official(folder, **how)


def sizes(config: Config, folder: Path | None = None) -> Sizes:
    """See `disp.models.llada_v.sizes.read_sizes`."""
    from disp.models.llada_v.sizes import read_sizes

    return read_sizes(config, folder)


# Learning rates, batch sizes and clipping of the training scripts of LLaDA-V (arXiv 2505.16933).
RECIPES = {
    # Stage 1, 16 rows a GPU; here as on eight.
    "llada-v-projector": Recipe(
        {**LLAVA_TRAINING, "method": "projector", "learning_rate": 1e-3, "rows_a_step": 128}, "projector"
    ),
    # Fine-tuning, 32 GPUs with two batches of one row each.
    "llada-v": Recipe(
        {
            **LLAVA_TRAINING, "method": "full", "learning_rate": 1e-5, "vision_learning_rate": 2e-6, "rows_a_step": 64,
            "gradient_checkpointing": True,
        },
        note="the authors train the tower too, at 2e-6; here `--train-vision` does",
    ),
}  # fmt: skip

FAMILY = Family(
    "llada_v",
    "LLaDA-V",
    detect,
    load,
    sizes,
    recipes=RECIPES,
    presets=lambda config: GENERATION_PRESETS,
    about=About(
        "llada_v.md",
        (
            Published(
                ("GSAI-ML/LLaDA-V",),
                "Apache-2.0 (training code)",
                "8.43 B",
                "1458 for a small square, 4257 at most (2889)",
            ),
        ),
    ),
)
