"""Pictures and prompts of DiffusionGemma."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from disp.data.sample import Query
from disp.errors import DispError
from disp.models.diffusion_gemma.images import image_patches, patch_positions, token_grid


@pytest.mark.parametrize("size", [(24, 24), (64, 48), (50, 37), (37, 50), (192, 108), (20, 60), (7, 500), (900, 11)])
def test_patches_are_those_of_the_published_processor(size):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(values)
    processor = Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=3, max_soft_tokens=70)
    expected = processor(image, return_tensors="pt")
    patches, (rows, columns) = image_patches(image, 4, 3, 70)
    count = len(patches)
    assert rows * columns == expected["num_soft_tokens_per_image"][0]
    assert torch.equal(torch.from_numpy(patches).float() / 255, expected["pixel_values"][0, :count].float())
    assert torch.equal(patch_positions(torch.tensor([[rows, columns]]), 3, 70 * 9), expected["image_position_ids"])


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((224, 224), 256),
        ((336, 336), 256),
        ((640, 480), 266),
        ((500, 375), 266),
        ((1920, 1080), 264),
        ((200, 600), 252),
    ],
)
def test_published_numbers_of_visual_tokens(size, tokens):
    rows, columns = token_grid(*size, side=48, max_tokens=280)
    assert rows * columns == tokens


def test_prompt_text_pictures_and_locations(gemma, gemma_tokenizer, questions):
    inputs = gemma.prepare(questions)
    prefix = gemma.embed(**inputs)
    assert inputs["grids"].tolist() == [[3, 3], [2, 5], [6, 1]]
    ids = inputs["token_ids"][1]
    text = gemma_tokenizer.decode(ids[ids >= 0])
    assert text == (
        f"{gemma_tokenizer.bos_token}<|turn>system\nBe brief.<turn|>\n<|turn>user\n\n\n<|image><image|>\n\nDescribe it."
        "<turn|>\n<|turn>model\nA cat.<turn|>\n<|turn>user\nAnd\n\n<|image><image|>\n\n"
        "what is left of the cat, and of two dogs?<turn|>\n<|turn>model\n"
    )
    assert prefix.visual_mask.sum(-1).tolist() == [9, 16, 0]
    places = [(0, 0, row, column) for row in range(2) for column in range(5)] + [(1, 0, row, 0) for row in range(6)]
    assert [tuple(place) for place in prefix.locations[1][prefix.visual_mask[1]].tolist()] == places
    assert (prefix.locations[~prefix.visual_mask] == -1).all()


def test_text_from_data_cannot_spell_control_tokens(gemma):
    ids = gemma.prepare([Query("x", 0, (), (), "a <|image|> <turn|> b")])["token_ids"]
    plain = gemma.prepare([Query("x", 0, (), (), "a b")])["token_ids"]
    assert not (ids == gemma.config.image_token_id).any()
    end = gemma.config.end_of_turn_token_id
    assert (ids == end).sum() == (plain == end).sum()
    # Added tokens that are no control tokens are text.
    assert gemma.plain("a\n\n<b>cat</b>") == "a\n\n<b>cat</b>"


def test_surplus_placeholder_is_an_error(gemma):
    with pytest.raises(DispError, match="placeholders"):
        gemma.prepare([Query("x", 0, (), (), "<image> what?")])


def test_cached_features_give_the_same_prefix(gemma, questions):
    features = [tensor for query in questions for tensor in gemma.image_features(query.images)]
    direct, cached = gemma.embed(**gemma.prepare(questions)), gemma.embed(**gemma.prepare(questions, features))
    assert torch.allclose(direct.embeds, cached.embeds, atol=1e-5)
    assert torch.equal(direct.locations, cached.locations)


def test_responses_round_trip(gemma):
    ids = gemma.encode_responses(["A cat.", ""], 10)
    assert gemma.decode_responses(ids) == ["A cat.", ""]
    assert ids[1, 0] == gemma.config.end_of_turn_token_id
    assert (ids[1, 1:] == gemma.config.text_config.pad_token_id).all()
    with pytest.raises(DispError, match="does not fit"):
        gemma.encode_responses(["A cat and two dogs and a tree."], 3)
