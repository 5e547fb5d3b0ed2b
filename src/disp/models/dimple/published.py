"""What is published of Dimple: sizes, how pictures are processed, decoding settings, and its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "attention_bias": True,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
}
# Sizes that a published config may leave out.
VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "hidden_act": "silu",
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
PROCESSING = {
    "min_pixels": 56 * 56,
    "max_pixels": 28 * 28 * 1280,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# The published evaluation: eight tokens, the likeliest first.
SHORT = {
    "gen_length": 8,
    "steps": 8,
    "sampler": "dream",
    "algorithm": "maskgit_plus",
    "temperature": 0.0,
    "top_p": 0.01,
    "top_k": 50,
    "prefix_cache": True,
}
# Decoding per lmms-eval task. Published: eight tokens for the first group, MM-Vet. The others are ours.
GENERATION_PRESETS: Mapping[str, Mapping[str, Any]] = {
    **{
        task: SHORT
        for task in (
            *("gqa", "vizwiz_vqa_test", "scienceqa_img", "mmbench_en_test", "pope", "mathvista_testmini", "ai2d"),
            *("chartqa", "mme", "ocrbench", "mmmu_val"),
            *("textvqa_val", "vqav2_val", "mmbench_en_dev", "mmstar", "seedbench", "realworldqa"),
        )
    },
    "mmvet": {**SHORT, "gen_length": 64, "steps": 64},
    **{task: {**SHORT, "gen_length": 32, "steps": 32} for task in ("docvqa_val", "infovqa_val")},
    **{
        task: {**SHORT, "gen_length": 64, "steps": 64}
        for task in ("coco2017_cap_val", "coco2017_cap_val_lite", "flickr30k_test", "nocaps_val")
    },
}


def detect(config: Mapping[str, Any]) -> bool:
    """Whether a published ``config.json`` is Dimple's."""
    if "model_type" in config:
        return bool(config["model_type"] == "dimple")
    # Qwen2.5-VL has no mask token.
    return "mrope_section" in config and "mask_token_id" in config and isinstance(config.get("vision_config"), dict)
