"""Sizes of published DiffusionGemma checkpoints, from their config: experts, and pictures of any shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from disp.models.diffusion_gemma.config import DiffusionGemmaMDLMConfig, read_config
from disp.models.diffusion_gemma.images import token_grid
from disp.models.diffusion_gemma.model import DiffusionGemma
from disp.models.sizes import Size, Sizes, TowerSizes, VisualCount, language_sizes, without_storage


def read_sizes(config: Mapping[str, Any], folder: Path | None = None) -> Sizes:
    """Sizes of the model that a config.json describes; see `disp.models.family.Family.sizes`."""
    read = DiffusionGemmaMDLMConfig.from_official(dict(config)) if folder is None else read_config(folder)
    # As they are written down: heads and their width are those of the layers with a sliding window, which are most.
    text: Any = SimpleNamespace(**read.to_dict()["text_config"])
    vision: Any = read.vision_config
    most, step = read.max_visual_tokens, vision.patch_size * vision.pooling_kernel_size

    def count(images: Sequence[Size]) -> VisualCount:
        grids = [token_grid(width, height, step, most) for width, height in images]
        # A start and an end around each image.
        return VisualCount(sum(rows * columns for rows, columns in grids), 2 * len(images), len(images))

    return Sizes(
        family="DiffusionGemma",
        model=without_storage(lambda: DiffusionGemma(read)),
        # A token runs through the dense layer and a few of the experts.
        language=language_sizes(
            text, hidden=text.intermediate_size + (text.top_k_experts or 0) * (text.moe_intermediate_size or 0)
        ),
        tower=TowerSizes(
            width=vision.hidden_size,
            hidden=vision.intermediate_size,
            patches=most * vision.pooling_kernel_size**2,
            # Pixels as they are read and as they are scaled.
            stem=2 * 3 * most * step * step,
        ),
        projected=most,
        visual_count=count,
        tied=bool(read.tie_word_embeddings),
    )
