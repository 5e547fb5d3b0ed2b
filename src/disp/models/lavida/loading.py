"""Loading published LaViDa checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.qwen2 import Qwen2Tokenizer

from disp.errors import DispError
from disp.models.checkpoint import weight_files
from disp.models.lavida.config import LavidaConfig
from disp.models.lavida.key_names import our_name
from disp.models.lavida.model import Lavida
from disp.models.lavida.published import TOKENS, Variant, detect, variant_of
from disp.models.parts.llava import CHAT_TEMPLATE, assemble_llava, read_configs
from disp.models.parts.tokenizers import read_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_EMBEDDING = {"llada": "model.transformer.wte.weight", "dream": "model.embed_tokens.weight"}


def load_tokenizer(folder: Path, variant: Variant) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer; None if it has none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return None
    if variant == "dream":
        # Dream's tokenizer is Qwen2's, but its config names code of its own.
        tokenizer = read_tokenizer(Qwen2Tokenizer, folder)
    else:
        tokenizer = read_tokenizer(AutoTokenizer, folder, config=LavidaConfig())
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHATML if variant == "dream" else CHAT_TEMPLATE
    return tokenizer


def embedding_rows(folder: Path, variant: Variant) -> int | None:
    """Rows of the stored embedding, from the files' headers; None if it is not there."""
    key = _EMBEDDING[variant]
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            if key in set(file.keys()):
                return file.get_slice(key).get_shape()[0]
    return None


def load_official(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    token_ids: Mapping[str, int] | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: str | None = None,
) -> Lavida:
    """Load a published checkpoint, or one of the same layout.

    Args:
        folder: config.json, safetensors and, where it is to read texts, the tokenizer's files; vision_config.json
            where the tower is not SigLIP-so400m.
        dtype: of the weights.
        device: where they go.
        token_ids: ids under the names of `TOKENS` that differ from the published ones; needed only where the folder
            has neither a tokenizer nor these ids in its config.
        device_map: see `disp.models.checkpoint.assemble`.
        quantization: see `disp.models.checkpoint.assemble`; of the language model's layers.

    Raises:
        DispError: the config is not that of a LaViDa, or keys are missing or surplus.
    """
    config, vision = read_configs(folder)
    if not detect(config):
        raise DispError(
            f"{folder / 'config.json'} is not that of a LaViDa; its model_type is {config.get('model_type')!r}"
        )
    variant = variant_of(config)
    tokenizer = load_tokenizer(folder, variant)
    found = {}
    if tokenizer is not None:
        known = tokenizer.get_vocab()
        found = {name: known[token] for name, (token, _) in TOKENS[variant].items() if token in known}
    own = config.get("disp", {}).get("token_ids", {})
    sizes = LavidaConfig.from_official(config, vision, **{**found, **own, **(token_ids or {})})
    # Training may have cut the unused rows off without the config saying so.
    sizes.vocab_size = embedding_rows(folder, variant) or sizes.vocab_size
    model, unused = assemble_llava(
        lambda: Lavida(sizes),
        folder,
        partial(our_name, variant=variant),
        sizes.vision["num_hidden_layers"],
        tokenizer,
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantization=quantization,
    )
    model.unused_weights = unused
    return model
