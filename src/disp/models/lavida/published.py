"""What is published of LaViDa: tokens, geometry, decoding settings, and its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Variant = Literal["llada", "dream"]

# Name, token and id of the special tokens of each variant. The ids of a folder's own tokenizer come before these.
# "fill" stands for a gap in fill-in-the-middle training, where it is neither masked nor predicted.
TOKENS: dict[str, dict[str, tuple[str, int]]] = {
    "llada": {
        "mask": ("<|mdm_mask|>", 126336),
        "bos": ("<|startoftext|>", 126080),
        "eos": ("<|endoftext|>", 126081),
        "eot": ("<|eot_id|>", 126348),
        "fill": ("<|reserved_token_1|>", 126085),
    },
    "dream": {
        "mask": ("<|mask|>", 151666),
        "bos": ("<|beginoftext|>", 151665),
        "eos": ("<|endoftext|>", 151643),
        "eot": ("<|im_end|>", 151645),
    },
}
PINPOINTS = ((384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152))
POOLING = ("bilinear", "average", "max", "none")
# Decoding as in the published scripts for captions: half as many steps as tokens, most tokens in the first ones.
_SETTINGS: dict[str, dict[str, Any]] = {
    "llada": {"prefix_cache": True},
    # The published results were made with version 4 of the transformers library, which set top_k behind the back of
    # its users.
    "dream": {"prefix_cache": True, "sampler": "dream", "algorithm": "topk_margin", "top_k": 50},
}
_HALF = {"schedule": "shift", "schedule_shift": 0.33}
# Slots of an answer in each task of the published evaluation, which takes a step a slot.
_TASKS = {
    **dict.fromkeys(("mme", "vqav2_val_lite", "textvqa_val", "chartqa", "scienceqa_full", "ai2d", "mmmu_val"), 16),
    **dict.fromkeys(("docvqa_val", "infovqa_val_lite"), 32),
    **dict.fromkeys(("mmbench_en_dev_lite", "mathvista_testmini_format", "mathverse_testmini_vision_dominant"), 100),
}
_CAPTIONS = (("coco2017_cap_val", 64), ("coco2017_cap_val_lite", 32))


def generation_presets(variant: Variant) -> dict[str, dict[str, Any]]:
    """The published decoding settings of each task."""
    own = _SETTINGS[variant]
    return {
        **{task: {**own, "gen_length": length, "steps": length} for task, length in _TASKS.items()},
        **{task: {**own, "gen_length": size, **_half_steps(variant, size)} for task, size in _CAPTIONS},
    }


def default_generation(variant: Variant, length: int) -> dict[str, Any]:
    """The published decoding settings for an answer of ``length`` slots."""
    return {**_SETTINGS[variant], **_half_steps(variant, length)}


def variant_of(config: Mapping[str, Any]) -> Variant:
    """Which language model a LaViDa's config.json describes."""
    return "llada" if "d_model" in config else "dream"


def _half_steps(variant: Variant, length: int) -> dict[str, Any]:
    if variant == "dream":
        return {**_HALF, "steps": length, "step_ratio": 0.5}  # half of the time grid is run
    return {**_HALF, "steps": max(length // 2, 1)}


def detect(config: Mapping[str, Any]) -> bool:
    """Whether a published ``config.json`` is that of a LaViDa: LLaDA-V has the same model type, other field names."""
    kind = config.get("model_type")
    return kind == "llava_dream" or (kind == "llava_llada" and {"d_model", "n_layers"} <= config.keys())
