"""Loading published LLaDA-V checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from disp.models.llada_v.config import LladaVConfig
from disp.models.llada_v.model import LladaV
from disp.models.llada_v.published import SPECIAL_TOKENS
from disp.models.parts.key_names import from_llava
from disp.models.parts.llava import CHAT_TEMPLATE, assemble_llava, read_configs
from disp.models.parts.tokenizers import read_tokenizer


def load_official(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    token_ids: Mapping[str, int] | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: str | None = None,
) -> LladaV:
    """Load a published checkpoint, or one of the same layout.

    Args:
        folder: config.json, safetensors and, where it is to read texts, the tokenizer's files; vision_config.json
            where the tower is not SigLIP-so400m.
        dtype: of the weights.
        device: where they go.
        token_ids: ids under the names of `SPECIAL_TOKENS` that differ from the published ones; needed only where the
            folder has neither a tokenizer nor these ids in its config.
        device_map: see `disp.models.checkpoint.assemble`.
        quantization: see `disp.models.checkpoint.assemble`; of the language model's layers.

    Raises:
        DispError: the config is not that of a LLaDA-V, or keys are missing or surplus.
    """
    config, vision = read_configs(folder)
    tokenizer = None
    found: dict[str, int] = {}
    if (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file():
        tokenizer = read_tokenizer(AutoTokenizer, folder, config=LladaVConfig())
        known = tokenizer.get_vocab()
        found = {name: known[token] for name, (token, _) in SPECIAL_TOKENS.items() if token in known}
        if not tokenizer.chat_template:
            tokenizer.chat_template = CHAT_TEMPLATE
    own = config.get("disp", {}).get("token_ids", {})
    sizes = LladaVConfig.from_official(config, vision, **{**found, **own, **(token_ids or {})})
    model, unused = assemble_llava(
        lambda: LladaV(sizes),
        folder,
        from_llava,
        sizes.vision["num_hidden_layers"],
        tokenizer,
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantization=quantization,
    )
    model.unused_weights = unused
    return model
