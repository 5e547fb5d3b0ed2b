"""Loading published LLaDA-V checkpoints, and others with LLaVA's modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from disp.models.checkpoint import assemble, read_json, read_weights
from disp.models.llada_v.config import LladaVConfig
from disp.models.llada_v.model import LladaV
from disp.models.llada_v.published import CHAT_TEMPLATE, SPECIAL_TOKENS
from disp.models.parts.key_names import TOWER, from_llava
from disp.models.parts.tokenizers import read_tokenizer

Model = TypeVar("Model", bound=LladaV)


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """``config.json``, and ``vision_config.json`` or None."""
    return read_json(folder / "config.json"), read_vision_config(folder)


def read_vision_config(folder: Path | None) -> dict[str, Any] | None:
    """``vision_config.json`` of a folder, None where there is none."""
    file = None if folder is None else folder / "vision_config.json"
    return read_json(file) if file is not None and file.is_file() else None


def assemble_llava(
    make: Callable[[], Model],
    folder: Path,
    key_map: Callable[[str], str],
    tower_layers: int,
    tokenizer: PreTrainedTokenizerBase | None,
    **placing: Any,
) -> Model:
    """Build a model with LLaVA's modules from a checkpoint, and give it its tokenizer.

    Args:
        make: makes the model.
        folder: the checkpoint.
        key_map: see `disp.models.checkpoint.assemble`.
        tower_layers: layers of the vision tower that are used.
        tokenizer: the tokenizer, or None.
        placing: ``dtype``, ``device``, ``device_map`` and ``quantization``, see `disp.models.checkpoint.assemble`.
    """
    model, unused = assemble(
        make,
        read_weights(folder),
        key_map,
        quantized=lambda name: name.startswith("model.layers."),
        # Never read: the norm and the pooling head behind the tower, and its last layer where it was kept.
        ignore=(rf"{re.escape(TOWER)}(post_layernorm|head|encoder\.layers\.{tower_layers})\..*",),
        what=str(folder),
        **placing,
    )
    model.unused_weights = unused
    if tokenizer is not None:
        model.tokenizer = tokenizer
    return model


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
    return assemble_llava(
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
