"""The family of MMaDA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from disp.models.family import About, Config, Family, Published, Recipe
from disp.models.mmada.published import GENERATION_PRESETS, detect

if TYPE_CHECKING:
    from disp.models.interface import MDLM
    from disp.models.sizes import Sizes


def load(folder: Path, **how: Any) -> MDLM:
    """See `disp.models.mmada.loading.load_official`."""
    from disp.models.mmada.loading import load_official

    return load_official(folder, **how)


def sizes(config: Config, folder: Path | None = None) -> Sizes:
    """See `disp.models.mmada.sizes.read_sizes`."""
    from disp.models.mmada.sizes import read_sizes

    return read_sizes(config, folder)


# Of MMaDA's training script (arXiv 2505.15809).
RECIPES = {
    "mmada": Recipe(
        {
            "method": "full", "learning_rate": 5e-5, "weight_decay": 0.01, "max_grad_norm": 1.0, "warmup_share": 0.03,
            "batch_size": 1, "gradient_checkpointing": True,
        },
        "language model",
        "weight decay 0.01; the authors warm up for 5000 steps, here for 3%",
    ),
}  # fmt: skip

FAMILY = Family(
    "mmada",
    "MMaDA",
    detect,
    load,
    sizes,
    recipes=RECIPES,
    presets=lambda config: GENERATION_PRESETS,
    about=About(
        "mmada.md",
        (
            Published(
                ("Gen-Verse/MMaDA-8B-MixCoT", "Gen-Verse/MMaDA-8B-Base"),
                "MIT",
                "8.14 B, image tokenizer included",
                "1024, a square",
            ),
        ),
        masked="the mask token itself",
        gradients="embeddings of the image tokens",
    ),
)
