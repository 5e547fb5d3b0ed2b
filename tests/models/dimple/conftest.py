"""A tiny Dimple with random weights, and dialogues."""

import pytest
import torch
from references.dimple import CONTROL, TINY, photo
from transformers import PreTrainedTokenizerFast

from disp.data.sample import Query, Turn
from disp.models.dimple.config import DimpleConfig
from disp.models.dimple.model import Dimple
from disp.models.dimple.tokenizer import CHAT_TEMPLATE


@pytest.fixture(scope="session")
def chat_tokenizer(tokenizer):
    """The tests' tokenizer with Qwen's control tokens and template."""
    own = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.__class__.from_str(tokenizer.backend_tokenizer.to_str()),
        eos_token=CONTROL[1],
        pad_token=tokenizer.pad_token,
        chat_template=CHAT_TEMPLATE,
    )
    own.add_special_tokens({"additional_special_tokens": CONTROL})
    return own


@pytest.fixture(scope="session")
def make_dimple(chat_tokenizer):
    def build(seed: int = 0, **overrides) -> Dimple:
        ids = chat_tokenizer.convert_tokens_to_ids
        official = {
            **TINY,
            "vocab_size": len(chat_tokenizer),
            "mask_token_id": ids("<|mask|>"),
            "image_token_id": ids("<|image_pad|>"),
            "vision_start_token_id": ids("<|vision_start|>"),
            "vision_end_token_id": ids("<|vision_end|>"),
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": chat_tokenizer.pad_token_id,
            # Large weights: with ordinary ones every distribution is nearly uniform.
            "initializer_range": 0.25,
            **overrides,
        }
        torch.manual_seed(seed)
        model = Dimple(DimpleConfig.from_official(official))
        model.tokenizer = chat_tokenizer
        model.official_config = official
        # The library initialises its own tower with small weights.
        for parameter in model.visual.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.3)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def model(make_dimple):
    """Shared by all tests: do not change it."""
    return make_dimple()


@pytest.fixture(scope="session")
def dialogues():
    """Landscape, none, portrait, and two pictures over two turns."""
    turns = (Turn("<image>\nIs there a boat?", "Yes, above the tree."),)
    return [
        Query("a", 0, (photo(112, 56),), (), "<image>\nDescribe the picture."),
        Query("b", 0, (), (), "What is a cat?", system="Answer briefly."),
        Query("c", 0, (photo(60, 200, 1),), (), "What is to the left of the cat?"),
        Query("d", 1, (photo(56, 84, 2), photo(140, 28, 3)), turns, "And in <image>, which has the apple?"),
    ]
