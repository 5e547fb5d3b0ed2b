"""The family of LaViDa, on LLaDA and on Dream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from disp.models.family import LLAVA_TRAINING, About, Config, Family, Published, Recipe
from disp.models.lavida.published import detect, generation_presets, variant_of

if TYPE_CHECKING:
    from disp.models.interface import MDLM
    from disp.models.sizes import Sizes


def load(folder: Path, **how: Any) -> MDLM:
    """See `disp.models.lavida.loading.load_official`."""
    from disp.models.lavida.loading import load_official

    return load_official(folder, **how)


def sizes(config: Config, folder: Path | None = None) -> Sizes:
    """See `disp.models.lavida.sizes.read_sizes`."""
    from disp.models.lavida.sizes import read_sizes

    return read_sizes(config, folder)


# Learning rates, batch sizes and schedule of LaViDa's training scripts (arXiv 2505.16839).
RECIPES = {
    # Stage 1, eight GPUs.
    "lavida-projector": Recipe(
        {**LLAVA_TRAINING, "method": "projector", "learning_rate": 1e-3, "rows_a_step": 256}, "projector"
    ),
    # Stages 2 and 3; each row is two in the loss.
    "lavida": Recipe(
        {
            **LLAVA_TRAINING, "method": "full", "learning_rate": 2e-5, "vision_learning_rate": 2e-6, "rows_a_step": 128,
            "gradient_checkpointing": True,
            "trainer": {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        },
        note="cosine down to a tenth; the authors train the tower too, at 2e-6; here `--train-vision` does",
    ),
}  # fmt: skip


def presets(config: Config) -> dict[str, dict[str, Any]]:
    """The published decoding settings of each task."""
    return generation_presets(variant_of(config))


FAMILY = Family(
    "lavida",
    "LaViDa",
    detect,
    load,
    sizes,
    recipes=RECIPES,
    presets=presets,
    about=About(
        "lavida.md",
        (
            Published(
                ("jacklishufan/lavida-llada-v1.0-instruct",),
                "Apache-2.0",
                "8.43 B",
                "392 for a small square, 980 at most (812)",
                name="on LLaDA",
            ),
            Published(
                ("jacklishufan/lavida-dream-v1.0-instruct",), "Apache-2.0", "8.03 B", "as above", name="on Dream"
            ),
        ),
        gradients="pooled tokens",
        prefix_cache="keys and values of the prompt, which does not see the answer; not exact; the published decoder "
        "uses it",
    ),
)
