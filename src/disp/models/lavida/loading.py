"""What a folder with a LaViDa checkpoint holds: names and rows of its weights, and its tokenizer."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.qwen2 import Qwen2Tokenizer

from disp.models.checkpoint import weight_files
from disp.models.lavida.config import LavidaConfig
from disp.models.lavida.published import Variant
from disp.models.llada_v.published import CHAT_TEMPLATE
from disp.models.parts.key_names import from_llada, from_llava, to_llada, to_llava

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_EMBEDDING = {"llada": "model.transformer.wte.weight", "dream": "model.embed_tokens.weight"}


def our_name(name: str, variant: Variant) -> str:
    """Our name of a published parameter."""
    return from_llava(from_llada(name) if variant == "llada" else name)


def official_name(name: str, variant: Variant) -> str:
    """The published name of one of our parameters."""
    return to_llava(to_llada(name) if variant == "llada" else name)


def load_tokenizer(folder: Path, variant: Variant) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer; None if it has none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return None
    if variant == "dream":
        # Dream's tokenizer is Qwen2's, but its config names code of its own.
        tokenizer = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=LavidaConfig(), local_files_only=True)
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
