"""Dimple's tokenizer, which is Qwen2's, and its chat template."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from disp.models.checkpoint import read_json
from disp.models.dimple.config import DimpleConfig
from disp.models.parts.tokenizers import read_tokenizer

# Used where the checkpoint brings no template.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint, or None where it has none.

    Published checkpoints name a tokenizer class of their own code; its rules are Qwen2's.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return None
    kind = ""
    if (folder / "tokenizer_config.json").is_file():
        kind = read_json(folder / "tokenizer_config.json").get("tokenizer_class") or ""
    if kind in ("", "DimpleTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast"):
        tokenizer = read_tokenizer(Qwen2Tokenizer, folder)
    else:
        tokenizer = read_tokenizer(AutoTokenizer, folder, config=DimpleConfig())
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
