"""A tiny Dimple, and the library's Qwen2.5-VL with its weights."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from disp.models.dimple.model import Dimple

CONTROL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|mask|>"]
TINY = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "mrope_section": [1, 2, 1],
    "rope_theta": 500.0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "vision_config": {
        "depth": 3,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 20,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
}


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def qwen_of(model: Dimple) -> tuple[Qwen2_5_VLConfig, Qwen2_5_VLTextModel]:
    """The library's language model with the weights of ours."""
    config = model.config
    text = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": 4096,
        "use_sliding_window": False,
        "pad_token_id": None,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "mrope_section": config.mrope_section,
        },
    }
    whole = Qwen2_5_VLConfig(text_config=text, vision_config=config.vision, image_token_id=config.image_token_id)
    language = Qwen2_5_VLTextModel(whole.text_config).eval()
    language.load_state_dict(model.model.state_dict())
    return whole, language


def library_hidden(language, embeds, positions, mask):
    """The library's hidden states under a mask of our own."""
    with torch.no_grad():
        return language(
            inputs_embeds=embeds,
            position_ids=positions.permute(2, 0, 1),
            attention_mask={"full_attention": mask},
            use_cache=False,
        ).last_hidden_state


def write(model: Dimple, folder: Path) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.official_state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**model.official_config, "model_type": "dimple"}))
    return weights
