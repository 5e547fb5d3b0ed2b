"""LLaDA-V's prompts and padded batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from references.llada_v import (
    noise_picture,
)

from disp.data.sample import Query, Turn
from disp.errors import DispError
from disp.models.llada_v.published import SYSTEM


def prompt_text(model, query: Query) -> str:
    ids = model.prepare([query])["token_ids"][0].tolist()
    return "".join("<image>" if token < -1 else model.tokenizer.decode([token]) for token in ids if token != -1)


def test_prompt(model):
    def turn(role: str, text: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"

    query = Query("a", 0, (noise_picture(60, 60),), (), "Which of them? <image>")
    ending = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    # The only picture is moved to the front, as in training.
    expected = "<|startoftext|>" + turn("system", SYSTEM) + turn("user", "<image>\nWhich of them?") + ending
    assert prompt_text(model, query) == expected
    two = Query("b", 1, (noise_picture(9, 9), noise_picture(8, 8)), (Turn("A <image> or <image>?", "Yes."),), "And?",
                system="Be brief.")  # fmt: skip
    assert prompt_text(model, two) == (
        "<|startoftext|>" + turn("system", "Be brief.") + turn("user", "A <image> or <image>?")
        + turn("assistant", "Yes.") + turn("user", "And?") + ending
    )  # fmt: skip


@torch.no_grad()
def test_a_padded_batch_is_its_rows(model, queries):
    response = torch.full((len(queries), 5), model.mask_token_id)
    together = model.encode(queries)
    logits = model.denoise(together, response)
    for row, query in enumerate(queries):
        alone = model.encode([query])
        valid = together.attention_mask[row]
        assert int(valid.sum()) == alone.embeds.shape[1]
        torch.testing.assert_close(together.embeds[row][valid], alone.embeds[0], atol=1e-5, rtol=0)
        assert torch.equal(together.locations[row][valid], alone.locations[0])
        assert torch.equal(together.visual_mask[row][valid], alone.visual_mask[0])
        assert not together.visual_mask[row][~valid].any() and (together.locations[row][~valid] == -1).all()
        torch.testing.assert_close(logits[row], model.denoise(alone, response[:1])[0], atol=1e-3, rtol=0)


@torch.no_grad()
def test_features_stand_in_for_pictures(model, queries, tmp_path):
    features = [tensor for query in queries for tensor in model.image_features(query.images)]
    assert [len(each) for each in features] == [5, 5, 1, 1]
    inputs = model.prepare(queries, features)
    assert set(inputs) == {"token_ids", "sizes", "features"}
    torch.testing.assert_close(model.embed(**inputs).embeds, model.encode(queries).embeds, atol=1e-5, rtol=0)
    # Of a file only the header is read.
    queries[0].images[0].save(tmp_path / "a.png")
    inputs = model.prepare([replace(queries[0], images=(tmp_path / "a.png",))], features[:1])
    assert inputs["sizes"].tolist() == [[100, 60]]
    (tmp_path / "b.png").write_bytes(b"none")
    with pytest.raises(DispError, match="cannot be read as an image"):
        model.prepare([replace(queries[0], images=(tmp_path / "b.png",))], features[:1])
