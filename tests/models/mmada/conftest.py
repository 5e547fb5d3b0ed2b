"""A tiny checkpoint of MMaDA, and what it is asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from references.mmada import VISION, mmada_tokenizer
from safetensors.torch import save_file

from disp.data.sample import Query, Turn
from disp.models.mmada.config import MMadaConfig
from disp.models.mmada.loading import load_official
from disp.models.mmada.model import MMada


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny checkpoint laid out like the published one: grouped-query heads, 4×4 image tokens of 8 codes."""
    folder = tmp_path_factory.mktemp("mmada")
    tokenizer = mmada_tokenizer()
    config = {
        "model_type": "mmada",
        "d_model": 32,
        "n_heads": 4,
        "n_kv_heads": 2,
        "n_layers": 2,
        "mlp_hidden_size": 48,
        "vocab_size": len(tokenizer) + 20,
        "embedding_size": len(tokenizer) + 20,
        "block_type": "llama",
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_theta": 500000.0,
        "weight_tying": False,
        "mask_token_id": 3,  # wrong on purpose: the tokenizer knows better
        "disp": {"gen_length": 16},
        "num_vq_tokens": 16,
        "codebook_size": 8,
    }
    torch.manual_seed(0)
    model = MMada(MMadaConfig.from_official(config, VISION))
    with torch.no_grad():
        for parameter in model.parameters():  # large: small ones predict the same nearly uniform distribution
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.2) + (parameter.ndim == 1))
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.official_state_dict(), folder / "model.safetensors")
    save_file(model.vq_state_dict(), folder / "vq.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def mmada(checkpoint) -> MMada:
    """The tiny checkpoint, loaded; shared by all tests: do not change it."""
    return load_official(checkpoint)


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """A landscape, a portrait and a square picture of noise."""
    draw = np.random.default_rng(0)
    sizes = ((9, 16), (21, 10), (8, 8))
    return [Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)) for height, width in sizes]


@pytest.fixture(scope="session")
def asked(pictures) -> list[Query]:
    """One picture, two pictures, no picture, and a second turn."""
    turn = Turn("<image>\nHi", "Yo")
    return [
        Query("a", 0, (pictures[0],), (), "<image>\nWhat?", "A cat"),
        Query("b", 0, tuple(pictures[1:]), (), "Is <image> like <image>?", "No"),
        Query("c", 0, (), (), "Say it", "It"),
        Query("d", 1, (pictures[1],), (turn,), "More", "Or less"),
    ]
