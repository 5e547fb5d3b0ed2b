"""A tiny DiffusionGemma with random weights, its twin of the library's own class, and questions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from references.diffusion_gemma import (
    CANVAS,
    WINDOW,
    library_twin,
)

from disp.data.sample import Query, Turn
from disp.models.builtin.tokenizer import train_tokenizer
from disp.models.diffusion_gemma.config import DiffusionGemmaMDLMConfig
from disp.models.diffusion_gemma.model import DiffusionGemma


@pytest.fixture(scope="session")
def gemma_tokenizer():
    tokenizer = train_tokenizer(["Describe the picture.", "What is to the left of the cat? Two dogs and a tree."], 290)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|turn>", "<turn|>", "<|image>", "<image|>", "<|image|>"]})
    tokenizer.add_tokens(["<b>", "\n\n"])
    tokenizer.chat_template = None
    return tokenizer


@pytest.fixture(scope="session")
def build(gemma_tokenizer):
    """A function that builds a model with random weights; keyword arguments override its config's."""

    def build(**overrides) -> DiffusionGemma:
        ids = gemma_tokenizer.get_vocab()
        config = DiffusionGemmaMDLMConfig(
            text_config={
                "vocab_size": len(gemma_tokenizer),
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "global_head_dim": 16,
                "num_global_key_value_heads": 1,
                "sliding_window": WINDOW,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
                "use_bidirectional_attention": "vision",
                "num_experts": 4,
                "top_k_experts": 2,
                "moe_intermediate_size": 16,
                "initializer_range": 0.3,
                "pad_token_id": gemma_tokenizer.pad_token_id,
            },
            vision_config={
                "model_type": "gemma4_vision",
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "patch_size": 2,
                "pooling_kernel_size": 3,
                "position_embedding_size": 64,
                "standardize": True,
                "initializer_range": 0.3,
            },
            **{
                "boi_token_id": ids["<|image>"],
                "eoi_token_id": ids["<image|>"],
                "image_token_id": ids["<|image|>"],
                "end_of_turn_token_id": ids["<turn|>"],
                "end_ids": [gemma_tokenizer.eos_token_id],
                "canvas_length": CANVAS,
                "max_visual_tokens": 12,
                "initializer_range": 0.3,
                **overrides,
            },
        )
        torch.manual_seed(0)
        model = DiffusionGemma(config)
        # What an initialisation leaves alike, and a wrong tie of encoder and decoder would not show.
        for name, value in model.state_dict().items():
            if name.endswith(("layer_scalar", "std_scale", "scale")):
                value.uniform_(0.5, 1.5)
            elif name.endswith("norm.weight"):
                value.uniform_(1.0, 3.0)
            elif name.endswith("std_bias"):
                value.normal_()
        model.model.decoder.embed_tokens.weight.data.mul_(0.3)
        model.tokenizer = gemma_tokenizer
        return model.eval()

    return build


@pytest.fixture(scope="session")
def gemma(build):
    """Shared by all tests: do not change it."""
    return build()


@pytest.fixture(scope="session")
def native(gemma, tmp_path_factory):
    return library_twin(gemma, tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="session")
def questions() -> list[Query]:
    """One picture, two pictures of other shapes in two turns, and none."""

    def picture(number: int, width: int, height: int) -> Image.Image:
        values = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(values)

    return [
        Query("a", 0, (picture(1, 24, 24),), (), "<image>\nDescribe the picture."),
        Query(
            "b",
            1,
            (picture(2, 50, 20), picture(3, 11, 40)),
            (Turn("<image>\nDescribe it.", "A cat."),),
            "And <image> what is left of the cat, and of two dogs?",
            system="Be brief.",
        ),
        Query("c", 0, (), (), "Hi"),
    ]
