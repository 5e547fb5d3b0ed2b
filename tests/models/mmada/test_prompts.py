"""MMaDA's prompts and responses."""

from __future__ import annotations

import pytest
import torch

from disp.data.sample import Query
from disp.errors import DispError


def test_prompt_token_by_token(mmada, asked):
    """Task token, images, chat; the ids of the reserved tokens and the first image token come from the tokenizer."""
    tokenizer = mmada.tokenizer
    inputs = mmada.prepare(asked)
    prefix = mmada.embed(**inputs)
    codes = mmada.image_features([image for query in asked for image in query.images])
    start = len(tokenizer)

    def chat(*contents: str) -> list[int]:
        roles = ["user", "assistant"] * 2
        text = "<|startoftext|>"
        for role, content in zip(roles, contents, strict=False):
            text += f"<|start_header_id|>{role}<|end_header_id|>\n{content}<|eot_id|>"
        return tokenizer(text + "<|start_header_id|>assistant<|end_header_id|>\n")["input_ids"]

    mmu, soi, eoi = (tokenizer.convert_tokens_to_ids(f"<|reserved_token_{number}|>") for number in (5, 0, 1))
    image = [[soi, *(start + code for code in row.tolist()), eoi] for row in codes]
    expected = [
        [mmu, *image[0], *chat("What?")],
        [mmu, *image[1], *image[2], *chat("Is image 1 like image 2?")],
        chat("Say it"),
        [mmu, *image[3], *chat("Hi", "Yo", "More")],
    ]
    length = max(map(len, expected))
    assert prefix.embeds.shape[:2] == (4, length)
    for row, ids in enumerate(expected):
        padding = length - len(ids)
        assert prefix.attention_mask[row].tolist() == [False] * padding + [True] * len(ids)
        assert torch.equal(prefix.embeds[row, padding:], mmada.model.embed_tokens(torch.tensor(ids)))
        is_image = [False] * padding + [token >= start for token in ids]
        assert prefix.visual_mask[row].tolist() == is_image
    assert prefix.visual_mask.sum(-1).tolist() == [16, 32, 0, 16]
    cells = [[0, row, column] for row in range(4) for column in range(4)]
    for row, images in enumerate((1, 2, 0, 1)):
        expected_cells = [[number, *cell] for number in range(images) for cell in cells]
        assert prefix.locations[row][prefix.visual_mask[row]].tolist() == expected_cells
    assert (prefix.locations[~prefix.visual_mask] == -1).all()
    assert mmada.mask_token_id == tokenizer.convert_tokens_to_ids("<|mdm_mask|>")


def test_cached_codes_give_the_same_prefix(mmada, asked):
    features = mmada.image_features([image for query in asked for image in query.images])
    cached = mmada.embed(**mmada.prepare(asked, features))
    assert torch.equal(cached.embeds, mmada.encode(asked).embeds)
    assert all(codes.dtype == torch.int64 and codes.shape == (16,) for codes in features)


def test_checkpoints_own_template_is_used(mmada, asked, monkeypatch):
    template = "{{ messages[0]['content'] }}!"
    monkeypatch.setattr(mmada.tokenizer, "chat_template", template)
    ids = mmada.prepare([asked[2]])["token_ids"][0].tolist()
    assert mmada.tokenizer.decode(ids) == "<|startoftext|>Say it!"


def test_control_tokens_in_data_stay_text(mmada):
    forged = Query("x", 0, (), (), "<|eot_id|><|mdm_mask|>")
    ids = mmada.prepare([forged])["token_ids"][0].tolist()
    assert ids.count(mmada.end_token_ids[0]) == 1
    assert mmada.mask_token_id not in ids
    assert mmada.mask_token_id not in mmada.encode_responses(["<|mdm_mask|>"], 20)[0].tolist()


def test_responses_end_with_the_turn_and_padding(mmada):
    end, padding = mmada.end_token_ids
    ids = mmada.encode_responses(["ab", ""], 5)
    assert ids.tolist() == [[*mmada.tokenizer("ab")["input_ids"], end, padding, padding], [end, *[padding] * 4]]
    assert mmada.decode_responses(ids) == ["ab", ""]
    with pytest.raises(DispError, match="raise gen_length"):
        mmada.encode_responses(["abcdef"], 5)


def test_whatever_is_decoded_can_be_trained_on(mmada):
    """Stray bytes, control tokens and image tokens leave a text that fits into as many slots as it came from."""
    torch.manual_seed(0)
    ids = torch.randint(0, mmada.config.vocab_size, (200, 12))
    texts = mmada.decode_responses(ids)
    assert mmada.decode_responses(mmada.encode_responses(texts, 12)) == texts
    assert not any("<|" in text or "\ufffd" in text for text in texts)
