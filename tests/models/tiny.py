"""Tiny checkpoints with random weights, laid out as each family publishes its own, tokenizer included."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from models.toy.model import Toy, ToyConfig
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DiffusionGemmaConfig, PreTrainedTokenizerFast

from disp.models import families
from disp.models.builtin import tokenizer as builtin
from disp.models.diffusion_gemma.chat import CHAT_TEMPLATE
from disp.models.diffusion_gemma.config import DiffusionGemmaMDLMConfig
from disp.models.diffusion_gemma.model import DiffusionGemma
from disp.models.dimple.config import DimpleConfig
from disp.models.dimple.model import Dimple
from disp.models.interface import MDLM
from disp.models.lavida import published as lavida
from disp.models.lavida.config import LavidaConfig
from disp.models.lavida.model import Lavida
from disp.models.llada_v import published as llada_v
from disp.models.llada_v.config import LladaVConfig
from disp.models.llada_v.model import LladaV
from disp.models.mmada import published as mmada
from disp.models.mmada.config import MMadaConfig
from disp.models.mmada.model import MMada

# Response slots of every tiny model.
LENGTH = 24
TILE = 56
ADDED = "<tool_call>"
SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": 14,
}
# LLaDA's own field names.
LLADA = {
    "d_model": 32,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 2,
    "mlp_hidden_size": 48,
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_theta": 500_000.0,
    "weight_tying": False,
}
# Llama's and Qwen2's.
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Changes a config.json as a test wants it.
Change = Callable[[dict[str, Any]], dict[str, Any]]
# Writes a checkpoint: to where, words for its tokenizer, changes, the vision tower of the families with SigLIP's.
Writer = Callable[[Path, Sequence[str], Change, dict[str, Any]], None]
MULTIMODAL = {
    "mm_vision_tower": "somewhere/siglip-so400m-patch14-384",
    "mm_projector_type": "mlp2x_gelu",
    "mm_patch_merge_type": "spatial_unpad",
}


def write_checkpoint(
    family: str, folder: Path, texts: Sequence[str], changes: Mapping[str, Any] | None = None, image_size: int = TILE
) -> Path:
    """Write a tiny checkpoint of one of `ALL`.

    Args:
        family: its name.
        folder: where to; it must not exist.
        texts: its tokenizer knows their words.
        changes: fields of config.json that are other than usual; None leaves a field out.
        image_size: side of a tile, of the families with SigLIP's tower.
    """
    folder.mkdir(parents=True)
    changes = changes or {}

    def changed(config: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in {**config, **changes}.items() if value is not None}

    WRITERS[family](folder, texts, changed, {**SIGLIP, "image_size": image_size})
    return folder


def make_tokenizer(texts: Sequence[str], special: Sequence[str], **named: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose special tokens are ``special``, and `ADDED`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Published tokenizers have such: added, but not special.
    tokenizer.add_tokens([AddedToken(ADDED, special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)


def _randomise(model: MDLM) -> None:
    """Large weights: those of an ordinary initialisation predict the same nearly uniform distribution everywhere."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                scale = name.endswith(("norm.weight", "scalar", "scale")) or ("norm" in name and value.ndim == 1)
                value.copy_(torch.randn_like(value) * (0.25 if value.ndim > 1 else 0.1) + scale)


def _write(folder: Path, config: dict[str, Any], model: MDLM, tokenizer: PreTrainedTokenizerFast, **more: Any) -> None:
    weights = {name: tensor.contiguous() for name, tensor in model.official_state_dict().items()} | more
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder)


def _unused_norm() -> dict[str, torch.Tensor]:
    """What SigLIP checkpoints hold although nothing reads it."""
    name = "model.vision_tower.vision_tower.vision_model.post_layernorm"
    return {f"{name}.{part}": torch.randn(SIGLIP["hidden_size"]) for part in ("weight", "bias")}


def _llada_v(folder: Path, texts: Sequence[str], change: Change, tower: dict[str, Any]) -> None:
    special = {name: token for name, (token, _) in llada_v.SPECIAL_TOKENS.items()}
    tokenizer = make_tokenizer(texts, list(special.values()))
    config = {
        "model_type": "llava_llada", **MULTIMODAL, **LLAMA, "vocab_size": len(tokenizer) + 3, "rope_theta": 500_000.0,
        "rms_norm_eps": 1e-5, "bos_token_id": 128_000, "image_aspect_ratio": "anyres_max_4",
        "image_grid_pinpoints": [[i * TILE, j * TILE] for i in range(1, 4) for j in range(1, 4)],
        "disp": {"gen_length": LENGTH},
    }  # fmt: skip
    config = change(config)
    (folder / "vision_config.json").write_text(json.dumps(tower))
    model = LladaV(LladaVConfig.from_official(config, tower, mask=0))
    _randomise(model)
    _write(folder, config, model, tokenizer, **_unused_norm())


def _lavida(variant: lavida.Variant) -> Writer:
    def write(folder: Path, texts: Sequence[str], change: Change, tower: dict[str, Any]) -> None:
        special = [token for token, _ in lavida.TOKENS[variant].values()]
        extra = ["<|im_start|>"] if variant == "dream" else ["<|start_header_id|>", "<|end_header_id|>"]
        tokenizer = make_tokenizer(texts, [*special, *extra])
        sizes = dict(LLADA) if variant == "llada" else {**LLAMA, "rope_theta": 1e6, "rms_norm_eps": 1e-6}
        config = {
            "model_type": f"llava_{variant}", **MULTIMODAL, **sizes, "vocab_size": len(tokenizer) + 3,
            "image_aspect_ratio": "anyres", "mm_spatial_pool_mode": "bilinear",
            "image_grid_pinpoints": [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]],
            "disp": {"gen_length": LENGTH},
        }  # fmt: skip
        if variant == "llada":
            config["embedding_size"] = config["vocab_size"]
        config = change(config)
        (folder / "vision_config.json").write_text(json.dumps(tower))
        model = Lavida(LavidaConfig.from_official(config, tower, mask=0))
        _randomise(model)
        _write(folder, config, model, tokenizer, **_unused_norm())

    return write


def _mmada(folder: Path, texts: Sequence[str], change: Change, tower: dict[str, Any]) -> None:
    special = [spellings[-1] for spellings, _ in mmada.SPECIAL_TOKENS.values()]
    headers = ["<|start_header_id|>", "<|end_header_id|>"]
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    tokenizer = make_tokenizer(texts, [*special, *headers], **names)
    vision = {"channels": 32, "multipliers": [1, 2, 2], "blocks": [1, 1, 1], "code_bits": 3, "attention_levels": [2]}
    config = {
        "model_type": "mmada", **LLADA, "vocab_size": len(tokenizer), "embedding_size": len(tokenizer) + 10,
        "num_vq_tokens": 64, "codebook_size": 8, "disp": {"gen_length": LENGTH},
    }  # fmt: skip
    config = change(config)
    model = MMada(MMadaConfig.from_official(config, vision, mask=0))
    _randomise(model)
    save_file(model.vq_state_dict(), folder / mmada.VQ_FILE)
    _write(folder, config, model, tokenizer)


def _dimple(folder: Path, texts: Sequence[str], change: Change, tower: dict[str, Any]) -> None:
    named = {
        "mask_token_id": "<|mask|>",
        "image_token_id": "<|image_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "bos_token_id": "<|im_start|>",
        "eos_token_id": "<|im_end|>",
        "pad_token_id": "<|endoftext|>",
    }
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = make_tokenizer(texts, list(named.values()), **names)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 20,
        "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = {
        "model_type": "dimple", **LLAMA, **ids, "vocab_size": len(tokenizer) + 3, "rope_theta": 1e6,
        "mrope_section": [1, 2, 1], "vision_config": vision, "disp": {"gen_length": LENGTH},
    }  # fmt: skip
    config = change(config)
    model = Dimple(DimpleConfig.from_official(config))
    _randomise(model)
    _write(folder, config, model, tokenizer)


def _diffusion_gemma(folder: Path, texts: Sequence[str], change: Change, tower: dict[str, Any]) -> None:
    special = ["<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|image>", "<image|>", "<|image|>"]
    tokenizer = make_tokenizer(texts, special, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
    text = {
        **LLAMA, "vocab_size": len(tokenizer), "head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1,
        "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"],
        "use_bidirectional_attention": "vision", "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16,
        "pad_token_id": ids["<pad>"], "eos_token_id": ids["<eos>"], "bos_token_id": ids["<bos>"],
    }  # fmt: skip
    vision = {
        "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "pooling_kernel_size": 2,
        "position_embedding_size": 64, "standardize": True,
    }  # fmt: skip
    places = {"boi_token_id": "<|image>", "eoi_token_id": "<image|>", "image_token_id": "<|image|>"}
    config = DiffusionGemmaConfig(
        text_config=text,
        vision_config=vision,
        canvas_length=LENGTH,
        **{name: ids[token] for name, token in places.items()},
    ).to_dict()
    config["disp"] = {"end_of_turn_token_id": ids["<turn|>"], "max_visual_tokens": 16, "denoising_steps": 8}
    config = change(config)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [ids["<eos>"], ids["<turn|>"]]}))
    model = DiffusionGemma(DiffusionGemmaMDLMConfig.from_official(config))
    _randomise(model)
    tokenizer.chat_template = CHAT_TEMPLATE
    _write(folder, config, model, tokenizer)


def _toy(folder: Path, texts: Sequence[str], change: Change, tower: dict[str, Any]) -> None:
    tokenizer = make_tokenizer(texts, builtin.SPECIAL_TOKENS)
    tokenizer.chat_template = builtin.CHAT_TEMPLATE
    model = Toy(ToyConfig(**change({**LLAMA, "vocab_size": len(tokenizer), "gen_length": LENGTH})))
    _randomise(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


WRITERS: dict[str, Writer] = {
    "llada_v": _llada_v,
    "lavida_llada": _lavida("llada"),
    "lavida_dream": _lavida("dream"),
    "mmada": _mmada,
    "dimple": _dimple,
    "diffusion_gemma": _diffusion_gemma,
    "toy": _toy,
}
# Those that are published, and these with the toy, for which the table of families has to be `extended`.
FAMILIES, ALL = tuple(name for name in WRITERS if name != "toy"), tuple(WRITERS)


@contextmanager
def extended() -> Iterator[None]:
    """With the toy in the table of families: the one line that adding a family takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.FAMILIES, "toy", "models.toy.family")
        yield
