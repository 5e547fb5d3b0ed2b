"""MMaDA's logits and gradients against Llama, and its decoding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.mmada.recorded import differing, published_sampler, slot0_gradient
from references.mmada import llama

from disp.decoding.generate import decode
from disp.decoding.samplers import decode_config
from disp.models.loading import load_model
from disp.models.mmada.config import MMadaConfig
from disp.models.mmada.family import FAMILY


def test_logits_and_gradients_of_padded_rows_match_llama(mmada, asked):
    """Grouped-query heads, several images, two turns; the other side sees one unpadded row at a time."""
    prefix = mmada.encode(asked)
    response = torch.full((4, 5), mmada.mask_token_id)
    response[:, 1] = torch.tensor([5, 6, 7, 8])
    leaf = prefix.embeds.clone().requires_grad_()
    logits = mmada.denoise(replace(prefix, embeds=leaf), response)
    (gradient,) = torch.autograd.grad(logits[:, 0].log_softmax(-1).max(-1).values.sum(), leaf)
    other = llama(mmada)
    for row in range(4):
        alone = prefix.embeds[row][prefix.attention_mask[row]].clone().requires_grad_()
        x = torch.cat((alone, mmada.model.embed_tokens(response[row])))[None]
        everywhere = torch.ones((1, 1, x.shape[1], x.shape[1]), dtype=torch.bool)
        expected = other(inputs_embeds=x, attention_mask=everywhere).logits[:, -5:]
        torch.testing.assert_close(logits[row : row + 1], expected, atol=1e-4, rtol=0)
        (expected_gradient,) = torch.autograd.grad(expected[0, 0].log_softmax(-1).max(), alone)
        torch.testing.assert_close(gradient[row][prefix.attention_mask[row]], expected_gradient, atol=1e-4, rtol=0)


def test_slot0_gradient_is_a_slope(mmada, asked):
    """The analytic gradient against finite differences in float64."""
    model = mmada.double()
    try:
        ids, visual = torch.randint(0, 250, (1, 12)), torch.zeros((1, 12), dtype=torch.bool)
        visual[:, 2:6] = True
        gradient = slot0_gradient(model, ids, visual, 3)
        prefix = model.embed_ids(ids, visual)
        response = torch.full((1, 3), model.mask_token_id)
        token = model.denoise(prefix, response)[0, 0].argmax()
        direction = torch.randn_like(gradient)
        step = torch.zeros_like(prefix.embeds)
        step[visual] = direction * 1e-5
        up, down = (
            model.denoise(replace(prefix, embeds=prefix.embeds + sign * step), response)[0, 0].log_softmax(-1)[token]
            for sign in (1, -1)
        )
        torch.testing.assert_close((up - down) / 2e-5, (gradient * direction).sum(), atol=1e-5, rtol=1e-5)
    finally:
        model.float()


def test_attention_bias_is_honoured_with_padding(mmada, asked):
    """A bias that hides the images from everyone equals a prompt whose images are padding."""
    prefix = mmada.encode(asked)
    response = torch.full((4, 3), mmada.mask_token_id)
    seen = torch.cat((~prefix.visual_mask, torch.ones((4, 3), dtype=torch.bool)), dim=1)
    bias = seen[:, None, None, :].expand(-1, 1, seen.shape[1], -1)
    hidden = mmada.denoise(prefix, response, attention_bias=bias)
    other = llama(mmada)
    x = torch.cat((prefix.embeds, mmada.model.embed_tokens(response)), dim=1)
    keys = torch.cat((prefix.attention_mask, torch.ones((4, 3), dtype=torch.bool)), dim=1) & seen
    positions = (torch.cat((prefix.attention_mask, torch.ones((4, 3), dtype=torch.bool)), dim=1).cumsum(-1) - 1).clamp(
        0
    )
    expected = other(
        inputs_embeds=x,
        attention_mask=keys[:, None, None, :].expand(-1, 1, x.shape[1], -1),
        position_ids=positions,
    ).logits[:, -3:]
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=0)


def test_masked_images_never_become_candidates(mmada, asked):
    """All visual tokens masked: every slot is answered, row by row as in the batch; the published rule fails here."""
    prefix = mmada.encode(asked)
    masked = prefix.with_masked(prefix.visual_mask, mmada.mask_embedding)
    config = decode_config(gen_length=8, steps=4, block_length=4)
    tokens = decode(mmada, masked, config)
    assert not (tokens == mmada.mask_token_id).any()
    for row in range(4):
        assert torch.equal(decode(mmada, masked.select(torch.tensor([row])), config)[0], tokens[row])
    ids, visual = torch.randint(0, 250, (1, 12)), torch.zeros((1, 12), dtype=torch.bool)
    visual[:, 2:8] = True
    settings = {"max_new_tokens": 8, "steps": 8, "block_length": 8}
    assert (published_sampler(mmada, ids, visual, settings) == mmada.mask_token_id).any()


def test_decoding_follows_the_published_rule_where_nothing_is_masked(mmada):
    for seed, (length, steps, block) in enumerate(((8, 8, 8), (8, 4, 4), (12, 5, 12), (12, 6, 4))):
        torch.manual_seed(seed)
        ids, nothing = torch.randint(0, 250, (2, 9)), torch.zeros((2, 9), dtype=torch.bool)
        config = decode_config(gen_length=length, steps=steps, block_length=block, ban_mask=False)
        settings = {"max_new_tokens": length, "steps": steps, "block_length": block}
        expected = published_sampler(mmada, ids, nothing, settings)
        assert differing(decode(mmada, mmada.embed_ids(ids, nothing), config), expected[:, 9:]) == 0


def test_settings_are_valid(mmada):
    for settings in FAMILY.presets({}).values():
        decode_config(**settings)
    assert (mmada.gen_length, mmada.generation_defaults) == (16, {"steps": 8, "block_length": 4})
    assert MMadaConfig().gen_length == 512


@pytest.mark.parametrize("length", [1, 2, 12, 64, 512])
def test_defaults_follow_the_length(checkpoint, length):
    model = load_model(checkpoint, gen_length=length)
    decode_config(gen_length=model.gen_length, **model.generation_defaults)
