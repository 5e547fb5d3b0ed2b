"""Sizes of published MMaDA checkpoints, from their config.

Pictures are token ids from a convolutional quantizer (MAGVIT-v2), of which only the encoder runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from disp.models.mmada.config import MMadaConfig
from disp.models.mmada.model import MMada
from disp.models.mmada.published import VQ_FILE
from disp.models.mmada.vq import published_sizes, stored_sizes
from disp.models.sizes import Size, Sizes, TowerSizes, VisualCount, language_sizes, without_storage

# What is held at once in the encoder's first stage, at full size: the stage's input, and of a residual block its input,
# the first convolution's output, and the second one's input and output; read off `ResnetBlock.forward` and checked by
# the profiler in tests/planning. A CPU's convolutions copy their output once more.
COPIES = 5


def read_sizes(config: Mapping[str, Any], folder: Path | None = None) -> Sizes:
    """Sizes of the model that a config.json describes; see `disp.models.family.Family.sizes`.

    The image tokenizer is the one beside the weights if there is one, and otherwise of the published sizes.
    """
    file = None if folder is None else folder / VQ_FILE
    encoder = stored_sizes(file) if file is not None and file.is_file() else published_sizes()
    read = MMadaConfig.from_official(config, encoder)
    model = without_storage(lambda: MMada(read))
    assert isinstance(model, MMada)
    tokens = model.grid**2

    def count(images: Sequence[Size]) -> VisualCount:
        # A start and an end around each image, and the name of the task before the first.
        return VisualCount(tokens * len(images), 2 * len(images) + bool(images), len(images))

    stem = COPIES * encoder["channels"] * read.image_size**2
    return Sizes(
        family="MMaDA",
        model=model,
        language=language_sizes(read),
        tower=TowerSizes(width=0, hidden=0, patches=tokens, stem=stem),
        projected=0,
        visual_count=count,
        separate_tower=True,
    )
