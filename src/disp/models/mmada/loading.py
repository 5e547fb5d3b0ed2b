"""Loading published MMaDA checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from disp.errors import DispError
from disp.models.checkpoint import assemble, read_json, read_weights
from disp.models.mmada.config import MMadaConfig
from disp.models.mmada.model import MMada
from disp.models.mmada.tokenizers import load_tokenizer, special_ids, vq_source
from disp.models.mmada.vq import build_encoder, read_encoder
from disp.models.parts.key_names import from_llada


def load_official(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    vq: str | Path | None = None,
    *,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: str | None = None,
) -> MMada:
    """Load a published checkpoint, or one that was saved under the published names.

    Args:
        folder: with ``config.json``, safetensors weights and, usually, tokenizer files.
        dtype: of the language model; the image tokenizer stays in float32.
        device: where to put it.
        vq: the image tokenizer's file or folder; by default ``vq.safetensors`` beside the model's weights, then
            ``showlab/magvitv2`` in the local hub cache. Without one the model answers prompts without images.
        device_map: see `disp.models.checkpoint.assemble`.
        quantization: "4bit" or "8bit" for the linear layers of the blocks.

    Raises:
        DispError: a file is missing or damaged, or weights do not fit the architecture by name or shape.
    """
    folder = Path(folder)
    published = read_json(folder / "config.json")
    tokenizer = load_tokenizer(folder)
    ids = special_ids(tokenizer, folder) if tokenizer is not None else {}
    source = vq_source(folder, vq)
    tower = build_encoder(read_encoder(source), str(source)) if source else None
    config = MMadaConfig.from_official(published, tower.sizes if tower else None, **ids)
    if tokenizer is not None:
        # Image tokens start right behind the tokenizer's last one, not behind the last embedding of the text model.
        config.image_token_offset = len(tokenizer)
        if len(tokenizer) + config.codebook_size > config.vocab_size:
            raise DispError(
                f"{folder}: image tokens {len(tokenizer)} to {len(tokenizer) + config.codebook_size - 1} do not fit "
                f"into {config.vocab_size} embeddings; tokenizer, image tokenizer and weights are of different models"
            )
    model, _ = assemble(
        lambda: _without_tower(config),
        read_weights(folder),
        from_llada,
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantization=quantization,
        quantized=lambda name: name.startswith("model.layers."),
        what=str(folder),
    )
    if tower is not None:
        model.vision_tower = tower.to(model.device)
    if tokenizer is not None:
        model.tokenizer = tokenizer
    return model


def _without_tower(config: MMadaConfig) -> MMada:
    model = MMada(config)
    model.vision_tower = None
    return model
