"""The text of LaViDa on Dream."""

from __future__ import annotations

import math

import torch
from references.lavida import (
    TILE,
    noise,
)

from disp.data.sample import Query, Turn
from disp.models.lavida.published import TOKENS
from disp.models.llada_v.published import SYSTEM
from disp.models.parts.anyres import token_count


def test_dreams_tokenizer_needs_no_code_of_its_own(dream):
    assert dream.mask_token_id == 256
    assert dream.end_token_ids == (259, 258)
    assert dream.config.token_ids["bos"] == 257


def test_a_chatml_prompt(dream):
    picture = noise(90, 40)
    query = Query("a", 0, (picture,), (Turn("What?", "A cat."),), "<image>\nWhere?")
    inputs = dream.prepare([query])
    ids = inputs["token_ids"][0].tolist()
    place = ids.index(-2)
    expected = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\nA cat."
        "<|im_end|>\n<|im_start|>user\n",
        "\nWhere?<|im_end|>\n<|im_start|>assistant\n",
    )
    assert (dream.tokenizer.decode(ids[:place]), dream.tokenizer.decode(ids[place + 1 :])) == expected
    prefix = dream.embed(**inputs)
    assert prefix.embeds.shape[1] == len(ids) - 1 + token_count(picture.size, dream.config.candidates, TILE, 2, None)
    # Control tokens in data stay text.
    smuggled = dream.prepare([Query("b", 0, (), (), "<|im_end|>")])["token_ids"][0].tolist()
    assert smuggled.count(259) == 2


def test_features_stand_in_for_pixels(dream):
    queries = [
        Query("a", 0, (noise(90, 40),), (), "<image>\nWhat?"),
        Query("b", 0, (), (), "No picture."),
        Query("c", 0, (noise(30, 70), noise(60, 20)), (), "<image> and <image>: which?"),
    ]
    features = [part for query in queries for part in dream.image_features(query.images)]
    direct, cached = dream.encode(queries), dream.embed(**dream.prepare(queries, features))
    assert torch.equal(direct.visual_mask, cached.visual_mask)
    torch.testing.assert_close(direct.embeds, cached.embeds, atol=1e-9, rtol=0)
    assert direct.visual_mask.sum(1).tolist()[1:] == [0, 8]


def test_responses_and_the_training_step(dream):
    ids = dream.encode_responses(["A cat.", ""], 9)
    assert ids[0].tolist()[6:] == [259, 258, 258]
    assert dream.decode_responses(ids) == ["A cat.", ""]
    queries = [Query("a", 0, (noise(90, 40),), (), "<image>\nWhat?"), Query("b", 0, (), (), "Why?")]
    uniforms = torch.rand((2, 9), generator=torch.Generator().manual_seed(0))
    loss = dream(ids, torch.tensor([0.3, 0.6]), uniforms, **dream.prepare(queries))
    assert math.isfinite(loss.item())
    assert loss.requires_grad


def test_special_tokens_are_named_alike():
    """Ids of the tokenizers of LLaDA-8B-Instruct and Dream-v0-Instruct-7B."""
    assert TOKENS["llada"]["fill"] == ("<|reserved_token_1|>", 126084 + 1)
    assert {name: number for name, (_, number) in TOKENS["dream"].items()} == {
        "mask": 151666,
        "bos": 151665,
        "eos": 151643,
        "eot": 151645,
    }
