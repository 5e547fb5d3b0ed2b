"""Loading published Dimple checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from disp.models.checkpoint import assemble, read_weights
from disp.models.dimple.config import read_config
from disp.models.dimple.model import Dimple
from disp.models.dimple.tokenizer import load_tokenizer


def load_official(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: str | None = None,
) -> Dimple:
    """Load a published checkpoint, or one of the same layout.

    Args:
        folder: config.json, safetensors, preprocessor_config.json where pictures are not processed in the default way,
            and, where it is to read texts, the tokenizer's files.
        dtype: of the weights.
        device: where they go.
        device_map: see `disp.models.checkpoint.assemble`.
        quantization: see `disp.models.checkpoint.assemble`; of the language model's layers.

    Raises:
        DispError: a file is missing or damaged, or keys are missing or surplus.
    """
    folder = Path(folder)
    config, tokenizer = read_config(folder), load_tokenizer(folder)
    model, _ = assemble(
        lambda: Dimple(config),
        read_weights(folder),
        lambda name: name,
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantization=quantization,
        quantized=lambda name: name.startswith("model.layers."),
        what=str(folder),
    )
    if tokenizer is not None:
        model.tokenizer = tokenizer
    return model
