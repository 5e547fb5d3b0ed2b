"""Loading published DiffusionGemma checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from disp.errors import DispError
from disp.models.diffusion_gemma.config import read_config
from disp.models.diffusion_gemma.model import DiffusionGemma
from disp.models.diffusion_gemma.weights import load_weights
from disp.models.parts.tokenizers import read_tokenizer


def load_official(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    *,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: str | None = None,
) -> DiffusionGemma:
    """Load a published checkpoint, or one that was saved by `disp`, which uses the published names.

    Args:
        folder: with ``config.json``, safetensors weights and, usually, tokenizer files.
        dtype: of the weights.
        device: where to put it, unless ``device_map`` is given.
        device_map: as `transformers` takes it. A layer of the encoder and the decoder's layer of the same number hold
            the same weights, so they have to go to the same device.
        quantization: None; nine tenths of the weights are 3-D tensors of experts, which bitsandbytes leaves alone.

    Raises:
        DispError: a file is missing or damaged, weights do not fit the architecture by name or shape, or
            ``quantization`` is asked for.
    """
    folder = Path(folder)
    if quantization is not None:
        raise DispError(
            f"{folder}: DiffusionGemma cannot be quantized here: most of its weights are fused experts, which "
            "bitsandbytes does not quantize; load it in bfloat16, over several devices with device_map if need be"
        )
    config = read_config(folder)
    model = load_weights(DiffusionGemma, folder, config, dtype=dtype, device_map=device_map)
    if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
        model.tokenizer = read_tokenizer(AutoTokenizer, folder, config=config)
    if device_map is None:
        model.to(device)  # type: ignore[arg-type]  # the library's decorator hides `self`
    return model.eval()
