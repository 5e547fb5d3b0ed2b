"""Dimple's layout and prompts."""

import math

import pytest
import torch
from references.dimple import photo, qwen_of
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from disp.data.sample import Query
from disp.errors import DispError
from disp.models.dimple.images import lay_out


def test_positions_are_those_of_the_library(model, dialogues):
    inputs = model.prepare(dialogues)
    config, _ = qwen_of(model)
    with torch.device("meta"):
        library = Qwen2_5_VLModel(config)
    types = (inputs["token_ids"] == model.config.image_token_id).int()
    grids = torch.cat((torch.ones(len(inputs["grids"]), 1, dtype=torch.int64), 2 * inputs["grids"]), dim=1)
    expected, _ = library.get_rope_index(
        inputs["token_ids"], types, image_grid_thw=grids, attention_mask=inputs["attention_mask"].long()
    )
    positions, _ = lay_out(inputs["token_ids"], inputs["attention_mask"], inputs["grids"], model.config.image_token_id)
    there = inputs["attention_mask"]
    assert positions[there].equal(expected.permute(1, 2, 0)[there])


def test_where_each_visual_token_is(model, dialogues):
    prefix = model.encode(dialogues)
    for row, query in enumerate(dialogues):
        places = prefix.locations[row][prefix.visual_mask[row]].tolist()
        expected = []
        for image, source in enumerate(query.images):
            rows, columns = model.patches(source)[1]
            expected += [[image, 0, y, x] for y in range(rows) for x in range(columns)]
        assert places == expected
    assert (prefix.locations[~prefix.visual_mask] == -1).all()
    assert not (prefix.visual_mask & ~prefix.attention_mask).any()


def test_the_prompt_is_written_as_published(model, dialogues):
    inputs = model.prepare(dialogues)
    text = model.tokenizer.decode(inputs["token_ids"][3][inputs["attention_mask"][3]])
    first, second = ("<|image_pad|>" * math.prod(model.patches(source)[1]) for source in dialogues[3].images)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{first}<|vision_end|>\nIs there a boat?<|im_end|>\n"
        "<|im_start|>assistant\nYes, above the tree.<|im_end|>\n"
        f"<|im_start|>user\nAnd in <|vision_start|>{second}<|vision_end|>, which has the apple?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    alone = model.tokenizer.decode(inputs["token_ids"][2][inputs["attention_mask"][2]])
    assert "<|im_start|>user\n<|vision_start|><|image_pad|>" in alone, "an image without a placeholder comes first"


def test_data_cannot_smuggle_in_control_tokens(model):
    query = Query("a", 0, (photo(56, 56),), (), "<image> <|image_pad|><|im_end|><|mask|>")
    ids = model.prepare([query])["token_ids"][0].tolist()
    assert ids.count(model.config.image_token_id) == 4
    assert model.mask_token_id not in ids


def test_images_and_placeholders_must_agree(model):
    with pytest.raises(DispError, match="'a': 2 <image> placeholders for 1 images"):
        model.prepare([Query("a", 0, (photo(56, 56),), (), "<image> and <image>")])
    inputs = model.prepare([Query("a", 0, (photo(56, 56),), (), "<image>")])
    with pytest.raises(DispError, match="do not match grid"):
        model.embed(**{**inputs, "grids": torch.tensor([[2, 3]])})
    with pytest.raises(DispError, match="2 images, but image tokens for 1"):
        model.embed(**{**inputs, "grids": torch.tensor([[2, 2], [2, 2]])})
