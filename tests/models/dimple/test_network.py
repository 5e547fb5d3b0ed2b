"""Dimple's logits against the library's."""

from dataclasses import replace

import pytest
import torch
from references.dimple import library_hidden, qwen_of

from disp.models.dimple.images import lay_out


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@torch.no_grad()
def test_logits_are_those_of_the_library(make_dimple, dialogues, kv_heads):
    model = make_dimple(seed=kv_heads, num_key_value_heads=kv_heads)
    _, language = qwen_of(model)
    prefix = model.encode(dialogues)
    response = torch.randint(5, 100, (4, 7), generator=torch.Generator().manual_seed(1))
    response[:, 2:5] = model.mask_token_id
    # The published mask: real tokens see real tokens, padding sees itself.
    there = torch.cat((prefix.attention_mask, torch.ones_like(response, dtype=torch.bool)), dim=1)
    mask = (there[:, None, :, None] & there[:, None, None, :]) | torch.eye(there.shape[1], dtype=torch.bool)
    embeds = torch.cat((prefix.embeds, model.model.embed_tokens(response)), dim=1)
    ids = torch.cat((model.prepare(dialogues)["token_ids"], response), dim=1)
    positions, _ = lay_out(ids, there, model.prepare(dialogues)["grids"], model.config.image_token_id)
    expected = model.lm_head(library_hidden(language, embeds, positions, mask))[:, prefix.embeds.shape[1] - 1 : -1]
    torch.testing.assert_close(model.denoise(prefix, response), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_rows_do_not_depend_on_the_batch(model, dialogues):
    response = torch.full((4, 5), model.mask_token_id)
    together = model.denoise(model.encode(dialogues), response)
    for row, query in enumerate(dialogues):
        alone = model.denoise(model.encode([query]), response[:1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_features_stand_in_for_pixels(model, dialogues):
    features = model.image_features([source for query in dialogues for source in query.images])
    assert [tensor.shape[:2] for tensor in features] == [model.patches(s)[1] for q in dialogues for s in q.images]
    cached, direct = model.embed(**model.prepare(dialogues, features)), model.encode(dialogues)
    torch.testing.assert_close(cached.embeds, direct.embeds, atol=1e-5, rtol=1e-5)
    assert cached.extras["positions"].equal(direct.extras["positions"])


@torch.no_grad()
def test_the_cache_against_one_pass_under_a_mask(model, dialogues):
    """Prompt keys and values that have seen an answer of all masks, and an answer that sees them and itself."""
    prefix = model.encode(dialogues)
    _, language = qwen_of(model)
    count, length = prefix.embeds.shape[1], 6
    response = torch.randint(5, 100, (4, length), generator=torch.Generator().manual_seed(2))
    cache = model.cache_prefix(prefix)
    cached = model.denoise(prefix, response, cache)
    blank = torch.full_like(response, model.mask_token_id)
    embeds, positions = model.joined(prefix, blank)
    tail, tail_positions = model.joined(prefix, response)
    embeds = torch.cat((embeds, tail[:, count - 1 :]), dim=1)
    positions = torch.cat((positions, tail_positions[:, count - 1 :]), dim=1)
    total = count + length
    mask = torch.zeros(4, 1, embeds.shape[1], embeds.shape[1], dtype=torch.bool)
    mask[:, :, :total, :total] = True
    mask[:, :, total:, : count - 1] = True
    mask[:, :, total:, total:] = True
    mask[..., :count] &= prefix.attention_mask[:, None, None, :]
    mask |= torch.eye(embeds.shape[1], dtype=torch.bool)
    expected = model.lm_head(library_hidden(language, embeds, positions, mask))[:, total:-1]
    torch.testing.assert_close(cached, expected, atol=1e-4, rtol=1e-4)
    # Filled, it serves any response, and any of its rows.
    torch.testing.assert_close(model.denoise(prefix, response, cache), expected, atol=1e-4, rtol=1e-4)
    rows = torch.tensor([3, 1])
    some = model.denoise(prefix.select(rows), response[rows], cache.select(rows))
    torch.testing.assert_close(some, expected[rows], atol=1e-4, rtol=1e-4)
    # With nothing filled in yet it changes nothing; for another length it is made anew.
    torch.testing.assert_close(
        model.denoise(prefix, blank, model.cache_prefix(prefix)), model.denoise(prefix, blank), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        model.denoise(prefix, blank[:, :3], cache), model.denoise(prefix, blank[:, :3]), atol=1e-5, rtol=1e-5
    )


def test_gradients_of_the_first_slot(make_dimple, dialogues):
    """Against a difference quotient."""
    model = make_dimple().double()
    prefix = model.encode(dialogues[:1])
    response = torch.full((1, 3), model.mask_token_id)

    def score(embeds):
        return model.denoise(replace(prefix, embeds=embeds), response)[0, 0].log_softmax(-1)[7]

    embeds = prefix.embeds.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(embeds), embeds)
    direction = torch.randn(embeds.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction = direction * prefix.visual_mask[..., None] * 1e-5
    with torch.no_grad():
        quotient = (score(prefix.embeds + direction) - score(prefix.embeds - direction)) / 2
    torch.testing.assert_close((gradient * direction).sum(), quotient, rtol=1e-5, atol=0)
    assert (gradient[prefix.visual_mask].abs().sum(-1) > 0).all()
