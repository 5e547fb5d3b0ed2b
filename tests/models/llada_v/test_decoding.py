"""LLaDA-V's decoding."""

from __future__ import annotations

from itertools import pairwise

import torch

from disp.decoding.generate import decode, decode_with_lengths, generate
from disp.decoding.samplers import decode_config
from disp.models.llada_v.family import FAMILY


@torch.no_grad()
def test_masked_visual_tokens_are_no_candidates(model, queries):
    for query in (queries[0], queries[3]):
        prefix = model.encode([query])
        hidden = prefix.with_masked(prefix.visual_mask, model.mask_embedding)
        before, seen, denoise = hidden.embeds.clone(), [], type(model).denoise

        def spy(given, response, cache=None, seen=seen, denoise=denoise):
            seen.append(int((response == model.mask_token_id).sum()))
            return denoise(model, given, response)

        model.denoise = spy
        ids = decode(model, hidden, decode_config(8, 4))
        del model.denoise
        assert seen == [8, 6, 4, 2] and all(a > b for a, b in pairwise(seen))
        assert not (ids == model.mask_token_id).any() and torch.equal(hidden.embeds, before)
        assert not set(ids[0].tolist()) & set(model.banned_token_ids)


def test_answers_stop_at_the_end_of_turn(model, queries):
    settings = {"gen_length": model.gen_length, **model.generation_defaults}
    assert settings["gen_length"] == settings["steps"] == 12
    eot = model.end_token_ids[0]
    assert settings["stop"] == ((eot,),)
    denoise = type(model).denoise

    def favour_end(given, response, cache=None):
        logits = denoise(model, given, response)
        logits[:, 3, eot] += 1000
        return logits

    model.denoise = favour_end
    decoded = decode_with_lengths(model, model.encode(queries[:2]), decode_config(**settings))
    texts = generate(model, queries[:2], decode_config(**settings))
    del model.denoise
    assert decoded.lengths.tolist() == [3, 3]
    assert (decoded.ids[:, 3] == eot).all() and (decoded.ids[:, 4:] == model.end_token_ids[1]).all()
    assert texts == [model.tokenizer.decode(row[:3]) for row in decoded.ids]


def test_presets_are_decoding_settings(model):
    for preset in FAMILY.presets({}).values():
        decode_config(**{"gen_length": model.gen_length, **model.generation_defaults, **preset})
