"""A tiny LaViDa with random weights, and an independent model: transformers' Llama or Qwen2."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

from disp.models.lavida.config import LavidaConfig
from disp.models.lavida.model import Lavida
from disp.models.saving import write_official

MASK, EOS, EOT, FILL = 60, 61, 62, 63
VARIANTS = ("llada", "dream")
TILE = 28


def make(variant: str = "llada", seed: int = 0, **overrides) -> Lavida:
    config = {
        "variant": variant,
        "token_ids": {"mask": MASK, "eos": EOS, "eot": EOT, **({"fill": FILL} if variant == "llada" else {})},
        "pinpoints": [(TILE, 2 * TILE), (2 * TILE, TILE), (2 * TILE, 2 * TILE), (3 * TILE, TILE), (TILE, 3 * TILE)],
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention_bias": variant == "dream",
        "rope_theta": 10_000.0,
        "gen_length": 6,
        "initializer_range": 0.3,
        "vision": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": 7,
        },
    }
    torch.manual_seed(seed)
    model = Lavida(LavidaConfig(**{**config, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and the newline, which start at zero
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval().double()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def left_padded(model: Lavida):
    """Two prompts of different lengths, one with a wide picture and one with a tall one."""
    rows = [model.splice(torch.tensor([3, 4, -200, 5, 6]), [noise(90, 40)])]
    rows.append(model.splice(torch.tensor([7, -200, 8]), [noise(30, 70, seed=1)]))
    longest = max(row.embeds.shape[1] for row in rows)

    def stack(name: str, value: float):
        return torch.cat(
            [
                F.pad(part, (0, 0) * (part.ndim - 2) + (longest - part.shape[1], 0), value=value)
                for part in (getattr(row, name) for row in rows)
            ]
        )

    both = replace(
        rows[0],
        embeds=stack("embeds", 0.0),
        attention_mask=stack("attention_mask", 0),
        visual_mask=stack("visual_mask", 0),
        locations=stack("locations", -1),
    )
    return both, rows


def reference_hidden(model: Lavida, embeds, mask):
    """The library's own bidirectional Llama or Qwen2 with our weights; ``mask`` bool ``[B, T, T]``."""
    own = model.config
    sizes = {
        name: getattr(own, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "rms_norm_eps",
            "rope_theta",
        )
    }
    model_class, config_class = (Qwen2Model, Qwen2Config) if own.variant == "dream" else (LlamaModel, LlamaConfig)
    reference = model_class(config_class(**sizes, attn_implementation="sdpa")).double().eval()
    ours = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    reference.load_state_dict({name: ours[name] for name in reference.state_dict()})
    positions = (mask[:, -1].long().cumsum(-1) - 1).clamp(min=0)
    # Rows of padding see themselves, for a row that sees nothing has no attention.
    mask = mask | torch.eye(mask.shape[1], dtype=torch.bool)
    return reference(inputs_embeds=embeds, attention_mask=mask[:, None], position_ids=positions).last_hidden_state


LLADA = {
    "model_type": "llava_llada",
    "d_model": 4096,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "mlp_hidden_size": 12288,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 126081,
    "mask_token_id": 126336,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]],
    "mm_spatial_pool_mode": "bilinear",
    "mm_patch_merge_type": "spatial_unpad",
}
DREAM = {
    "model_type": "llava_dream",
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "num_hidden_layers": 28,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    **{name: value for name, value in LLADA.items() if name.startswith(("mm_", "image_"))},
}


def published_config(model: Lavida) -> dict:
    own = model.config
    config = {"mask_token_id": MASK, "eos_token_id": EOS, "image_grid_pinpoints": own.pinpoints}
    names = ("vocab_size", "rope_theta", "rms_norm_eps")
    config |= {name: getattr(own, name) for name in names}
    if own.variant == "llada":
        config |= {"model_type": "llava_llada", "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2}
        return {**config, "mlp_hidden_size": 48}
    config |= {"model_type": "llava_dream", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {**config, "num_hidden_layers": 2, "intermediate_size": 48}


def write(model: Lavida, folder: Path, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    weights = {**model.official_state_dict(), **changes.pop("weights", {})}
    vision = {**model.config.vision, "num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps({**published_config(model), **changes}))
    (folder / "vision_config.json").write_text(json.dumps(vision))
    write_official(model, folder, None, state_dict={name: t for name, t in weights.items() if t is not None})
    return folder


def write_dream_tokenizer(folder: Path) -> None:
    """Qwen2's file layout with bytes for tokens, and a config that names code of its own as Dream's does."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {symbol: index for index, symbol in enumerate(bytes_to_unicode().values())}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = ["<|mask|>", "<|beginoftext|>", "<|endoftext|>", "<|im_end|>", "<|im_start|>"]
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": {
            str(256 + index): {"content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False}
            for index, token in enumerate(special)
        },
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
