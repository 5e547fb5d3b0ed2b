"""What is published of LLaDA-V: tokens, system message, decoding settings, and its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Name, token and id of the special tokens. The ids of a folder's own tokenizer come before these.
SPECIAL_TOKENS = {
    "mask": ("<|mdm_mask|>", 126336),
    "bos": ("<|startoftext|>", 126080),
    "eos": ("<|endoftext|>", 126081),
    "start_header": ("<|start_header_id|>", 126346),
    "end_header": ("<|end_header_id|>", 126347),
    "eot": ("<|eot_id|>", 126348),
}
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
# Decoding settings of some benchmarks.
GENERATION_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "multiple_choice": {"gen_length": 2, "block_length": 2, "steps": 2},
    "chartqa": {"gen_length": 16, "block_length": 16, "steps": 16, "stop": ("\n", "<|eot_id|>")},
    "docvqa": {"gen_length": 32, "block_length": 32, "steps": 16},
    "infovqa": {"gen_length": 32, "block_length": 32, "steps": 16},
    "mathvista": {"gen_length": 96, "block_length": 96, "steps": 48},
    "mathverse": {"gen_length": 64, "block_length": 64, "steps": 32},
}


def detect(config: Mapping[str, Any]) -> bool:
    """Whether a published ``config.json`` is that of a LLaDA-V: LaViDa has the same model type, other field names."""
    return (
        config.get("model_type") in ("llava_llada", "llada")
        and "d_model" not in config
        and {"hidden_size", "num_hidden_layers", "mm_vision_tower"} <= config.keys()
    )
