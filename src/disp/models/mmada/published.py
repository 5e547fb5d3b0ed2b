"""What is published of MMaDA: tokens, decoding settings, and its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The image tokenizer: its file beside the weights, and where it is published.
VQ_FILE = "vq.safetensors"
VQ_HUB_ID = "showlab/magvitv2"
# Name, spellings and id of the special tokens. MMaDA took LLaDA's reserved tokens without renaming them. The ids of a
# folder's own tokenizer come before these.
SPECIAL_TOKENS: dict[str, tuple[tuple[str, ...], int]] = {
    "mask": (("<|mdm_mask|>",), 126336),
    "bos": (("<|startoftext|>",), 126080),
    "eos": (("<|endoftext|>",), 126081),
    "eot": (("<|eot_id|>",), 126348),
    "mmu": (("<|mmu|>", "<|reserved_token_5|>"), 126089),
    "soi": (("<|soi|>", "<|reserved_token_0|>"), 126084),
    "eoi": (("<|eoi|>", "<|reserved_token_1|>"), 126085),
}

# Published are: two tokens for whatever is not named, MathVista, MathVerse and MM-Vet (the repository's VLMEvalKit).
# The others are ours: room for the answers, one token a step.
GENERATION_PRESETS: dict[str, dict[str, Any]] = {
    "multiple_choice": {"gen_length": 2, "steps": 2, "block_length": 2},
    "yes_no": {"gen_length": 2, "steps": 2, "block_length": 2},
    "mathvista": {"gen_length": 96, "steps": 96, "block_length": 48},
    "mathverse": {"gen_length": 256, "steps": 128, "block_length": 32},
    "mmvet": {"gen_length": 512, "steps": 256, "block_length": 128},
    "short_answer": {"gen_length": 16, "steps": 16, "block_length": 16},
    "chartqa": {"gen_length": 16, "steps": 16, "block_length": 16},
    "docvqa": {"gen_length": 32, "steps": 32, "block_length": 32},
    "infovqa": {"gen_length": 32, "steps": 32, "block_length": 32},
    "caption": {"gen_length": 64, "steps": 64, "block_length": 64},
}


def detect(config: Mapping[str, Any]) -> bool:
    """Whether a published ``config.json`` is MMaDA's.

    LaViDa is built on the same LLaDA config but names a vision tower; plain LLaDA has a ``model_type`` of its own.
    """
    if "model_type" in config:
        return bool(config["model_type"] == "mmada")
    return "d_model" in config and "n_layers" in config and not any(name.startswith("mm_") for name in config)
