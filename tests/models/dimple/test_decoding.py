"""Dimple's decoding."""

import pytest
import torch

from disp.decoding.generate import decode
from disp.decoding.samplers import decode_config
from disp.errors import DispError
from disp.models.dimple.family import FAMILY


@pytest.mark.parametrize("cache", [False, True])
def test_masked_visual_tokens_are_never_candidates(model, dialogues, cache):
    prefix = model.encode(dialogues)
    prefix = prefix.with_masked(prefix.visual_mask, model.mask_embedding)
    for config in (
        decode_config(6, 6, sampler="dim", algorithm="maskgit_plus", prefix_cache=cache),
        decode_config(6, 3, sampler="dream", algorithm="entropy", top_k=50, prefix_cache=cache),
    ):
        ids = decode(model, prefix, config)
        assert ids.shape == (4, 6) and not (ids == model.mask_token_id).any()
        for row in range(4):
            alone = decode(model, prefix.select(torch.tensor([row])), config)
            assert alone.equal(ids[row : row + 1])


def test_published_settings_are_valid(model, dialogues):
    for name, settings in {**FAMILY.presets({}), "": model.generation_defaults}.items():
        config = decode_config(**{**settings, "gen_length": 4, "steps": 4})
        ids = decode(model, model.encode(dialogues[:2]), config, keys=["a", "b"])
        assert not (ids == model.mask_token_id).any(), name


def test_answers_end_with_padding(model):
    ids = model.encode_responses(["A red apple.", ""], 12)
    assert ids[0, -1] == model.end_token_ids[-1] and (ids[1] == model.end_token_ids[-1]).all()
    assert model.end_token_ids[0] not in ids, "the published data has no end of turn"
    assert model.decode_responses(ids) == ["A red apple.", ""]
    ids[0, 2] = model.end_token_ids[0]
    assert model.decode_responses(ids)[0] == model.tokenizer.decode(ids[0, :2])
    exact = int((ids[0] != model.end_token_ids[-1]).sum())
    assert model.decode_responses(model.encode_responses(["A red apple."], exact)) == ["A red apple."]
    with pytest.raises(DispError, match="raise gen_length"):
        model.encode_responses(["A red apple."], exact - 1)
