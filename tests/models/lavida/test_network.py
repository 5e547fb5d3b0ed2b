"""LaViDa's logits against transformers' own classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from references.lavida import (
    MASK,
    left_padded,
    reference_hidden,
)


@torch.no_grad()
def test_logits_are_those_of_a_bidirectional_llama_or_qwen2(model):
    """Grouped heads, biases and left padding; Dream's rows are shifted by one."""
    prefix, _ = left_padded(model)
    response = torch.tensor([[9, MASK, 11, MASK, MASK], [MASK, 12, MASK, MASK, 13]])
    embeds = torch.cat((prefix.embeds, model.model.embed_tokens(response)), dim=1)
    valid = F.pad(prefix.attention_mask, (0, 5), value=True)
    hidden = reference_hidden(model, embeds, valid[:, None].expand(-1, embeds.shape[1], -1))
    first = prefix.embeds.shape[1] - (model.config.variant == "dream")
    expected = model.lm_head(hidden[:, first : first + 5])
    torch.testing.assert_close(model.denoise(prefix, response), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_cached_prompt_has_not_seen_the_response(model):
    """The cache equals a mask under which prompt rows see the prompt only; slot 0 of Dream comes from the prompt."""
    prefix, _ = left_padded(model)
    response = torch.tensor([[9, MASK, 11, MASK, MASK], [MASK, 12, MASK, MASK, 13]])
    prompt = prefix.embeds.shape[1]
    embeds = torch.cat((prefix.embeds, model.model.embed_tokens(response)), dim=1)
    mask = F.pad(prefix.attention_mask, (0, 5), value=True)[:, None].repeat(1, prompt + 5, 1)
    mask[:, :prompt, prompt:] = False
    first = prompt - (model.config.variant == "dream")
    expected = model.lm_head(reference_hidden(model, embeds, mask)[:, first : first + 5])
    cache = model.cache_prefix(prefix)
    torch.testing.assert_close(model.denoise(prefix, response, cache), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model.denoise(prefix, response), expected, atol=1e-2)


@torch.no_grad()
def test_rows_do_not_depend_on_the_batch(model):
    prefix, rows = left_padded(model)
    response = torch.full((2, 4), MASK)
    together = model.denoise(prefix, response)
    for index, row in enumerate(rows):
        torch.testing.assert_close(together[index], model.denoise(row, response[:1])[0], atol=1e-9, rtol=0)
