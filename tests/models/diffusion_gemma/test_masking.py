"""What stands in place of masked visual tokens in DiffusionGemma."""

from __future__ import annotations

import pytest
import torch
from references.diffusion_gemma import (
    CANVAS,
)

from disp.errors import DispError
from disp.suspicion.config import SaliencyConfig
from disp.suspicion.saliency import saliency


def test_masked_tokens_become_the_mean_of_their_image(gemma, questions):
    prefix = gemma.encode(questions)
    visual = prefix.visual_mask.nonzero()[::2]
    masked = torch.zeros_like(prefix.visual_mask)
    masked[visual[:, 0], visual[:, 1]] = True
    hidden = prefix.with_masked(masked, gemma.mask_embedding)
    for row, column in prefix.visual_mask.nonzero().tolist():
        image = prefix.locations[row, column, 0]
        same = prefix.visual_mask[row] & (prefix.locations[row, :, 0] == image)
        expected = prefix.embeds[row, same].mean(0) if masked[row, column] else prefix.embeds[row, column]
        assert torch.allclose(hidden.embeds[row, column], expected, atol=1e-5)
    assert torch.equal(hidden.embeds[~masked], prefix.embeds[~masked])
    # In two rounds, and of a part of the rows: the same.
    half = masked & (torch.arange(masked.shape[1]) % 2 == 0)
    twice = prefix.with_masked(half, gemma.mask_embedding).with_masked(masked, gemma.mask_embedding)
    assert torch.equal(twice.embeds, hidden.embeds)
    rows = torch.tensor([1, 1, 0])
    assert torch.equal(prefix.select(rows).with_masked(masked[rows], gemma.mask_embedding).embeds, hidden.embeds[rows])
    with pytest.raises(ValueError, match="only visual tokens"):
        prefix.with_masked(~prefix.visual_mask, gemma.mask_embedding)


@torch.no_grad()
def test_random_and_zero_substitutes(build, questions):
    model = build(visual_substitute="random", noise_seed=4)
    prefix = model.encode(questions)
    hidden = prefix.with_masked(prefix.visual_mask, model.mask_embedding)
    ids = model.random_ids("visual substitute", 16)
    table = model.model.decoder.embed_tokens(ids)
    for row in range(2):
        count = int(prefix.visual_mask[row].sum())
        assert torch.equal(hidden.embeds[row, prefix.visual_mask[row]], table[:count])
    everything = model.model.decoder.embed_tokens(torch.arange(model.vocab_size))
    assert torch.allclose(model.mask_embedding, everything.mean(0), atol=1e-6)
    model = build(visual_substitute="zero")
    prefix = model.encode(questions)
    hidden = prefix.with_masked(prefix.visual_mask, model.mask_embedding)
    assert (hidden.embeds[prefix.visual_mask] == 0).all()
    assert (model.mask_embedding == 0).all()


@pytest.mark.parametrize("wrong", [{"visual_substitute": "median"}, {"gen_length": CANVAS + 1}, {"gen_length": 0}])
def test_wrong_settings_are_errors(build, wrong):
    with pytest.raises(DispError, match=next(iter(wrong))):
        build(**wrong)


def test_saliency_is_of_visual_tokens_alone(gemma, questions):
    prefix = gemma.encode(questions)
    keys = [query.key for query in questions]
    scores = saliency(gemma, prefix, keys, SaliencyConfig(probes=2))
    assert (scores[prefix.visual_mask] > 0).all()
    assert (scores[~prefix.visual_mask] == 0).all()
    single = saliency(gemma, gemma.encode(questions[1:2]), keys[1:2], SaliencyConfig(probes=2))
    assert torch.allclose(
        scores[1, prefix.visual_mask[1]], single[0, prefix.visual_mask[1][-single.shape[1] :]], rtol=1e-3
    )
