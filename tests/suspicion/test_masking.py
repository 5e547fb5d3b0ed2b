"""Masks have the right size and place, whatever the batch."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disp.errors import DispError
from disp.suspicion.masking import hide, mask_counts, mask_random, mask_top
from disp.suspicion.saliency import rank_tokens

rows = st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4)
percents = st.integers(0, 100)
quick = settings(deadline=None, max_examples=60)


@quick
@given(rows, percents, st.integers(0, 3))
def test_masks_the_highest(visual, percent, seed):
    visual = torch.tensor(visual)
    # Few distinct scores, so that ties are common.
    scores = torch.randint(0, 4, visual.shape, generator=torch.Generator().manual_seed(seed)).float()
    masked = mask_top(scores, visual, percent / 100)
    assert masked.dtype == torch.bool and not (masked & ~visual).any()
    for row in range(len(visual)):
        count = int(visual[row].sum())
        best_first = sorted((-scores[row, i].item(), i) for i in range(12) if visual[row, i])
        expected = [i for _, i in best_first[: math.ceil(Fraction(percent, 100) * count)]]
        assert masked[row].nonzero()[:, 0].tolist() == sorted(expected)
        assert rank_tokens(scores, visual)[row, :count].tolist() == [i for _, i in best_first]


@quick
@given(rows, percents, percents, st.integers(0, 3))
def test_random_masks_are_nested_and_of_the_same_size(visual, low, high, seed):
    visual = torch.tensor(visual)
    keys = [f"k{row}" for row in range(len(visual))]
    low, high = sorted((low, high))
    fewer, more = (mask_random(visual, percent / 100, keys, seed) for percent in (low, high))
    assert not (more & ~visual).any() and not (fewer & ~more).any()
    assert torch.equal(more.sum(-1), mask_top(torch.zeros(visual.shape), visual, high / 100).sum(-1))


@quick
@given(rows, percents, st.integers(0, 5))
def test_random_masks_do_not_depend_on_batch_order_or_padding(visual, percent, padding):
    visual = torch.tensor(visual)
    keys = [f"k{row}" for row in range(len(visual))]
    together = mask_random(visual, percent / 100, keys, 1)
    assert torch.equal(mask_random(visual.flip(0), percent / 100, keys[::-1], 1).flip(0), together)
    for row, key in enumerate(keys):
        padded = torch.cat((torch.zeros(1, padding, dtype=torch.bool), visual[row : row + 1]), dim=1)
        assert torch.equal(mask_random(padded, percent / 100, [key], 1)[0, padding:], together[row])


def test_random_masks_depend_on_seed_and_key():
    visual = torch.ones(2, 64, dtype=torch.bool)
    masked = mask_random(visual, 0.5, ["a", "b"], 0)
    assert not torch.equal(masked[0], masked[1])
    assert not torch.equal(masked, mask_random(visual, 0.5, ["a", "b"], 1))


@quick
@given(st.integers(0, 4000), st.integers(0, 1000))
def test_counts_are_those_of_exact_arithmetic(tokens, thousandths):
    visual = torch.ones(1, tokens, dtype=torch.bool)
    assert mask_counts(visual, thousandths / 1000) == [math.ceil(Fraction(thousandths * tokens, 1000))]


def test_counts_at_the_edges():
    visual = torch.ones(1, 100, dtype=torch.bool)
    assert 0.07 * 100 > 7 and mask_counts(visual, 0.07) == [7]
    assert mask_counts(visual, 0) == [0] and mask_counts(visual, 1) == [100]
    assert mask_counts(visual, 1e-9) == [1]
    # As the published script cuts: int(0.29 * 100).
    assert 0.29 * 100 < 29 and mask_counts(visual, 0.29, rounding="down") == [28]
    assert mask_counts(visual, 1, rounding="down") == [100]


@pytest.mark.parametrize("ratio", [-0.1, 1.01, 45, float("nan")])
def test_ratio_out_of_range(ratio):
    visual = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(DispError, match=r"must be in \[0, 1\], got"):
        mask_top(torch.zeros(1, 4), visual, ratio)
    with pytest.raises(DispError, match=r"must be in \[0, 1\], got"):
        mask_random(visual, ratio, ["a"], 0)


@pytest.fixture
def halved(tiny_model, queries):
    """Two rows with a picture, and every second visual token of each."""
    prefix = tiny_model.encode(queries[:2])
    masked = prefix.visual_mask & (prefix.visual_mask.cumsum(-1) % 2 == 1)
    return prefix, masked


@torch.no_grad()
def test_hidden_tokens_become_what_was_asked_for(tiny_model, halved):
    prefix, masked = halved
    assert 0 < masked.sum() < prefix.visual_mask.sum()
    expected = {
        "mask": lambda row: tiny_model.mask_embedding,
        "zeros": lambda row: torch.zeros_like(tiny_model.mask_embedding),
        "mean": lambda row: torch.stack([prefix.embeds[row, place] for place in visual_places(prefix, row)]).mean(0),
    }
    for substitute, value in expected.items():
        hidden = hide(prefix, masked, tiny_model.mask_embedding, substitute)
        assert torch.equal(hidden.embeds[~masked], prefix.embeds[~masked])
        assert torch.equal(hidden.attention_mask, prefix.attention_mask)
        for row in range(len(prefix)):
            found = hidden.embeds[row, masked[row]]
            torch.testing.assert_close(found, value(row).expand_as(found))


def visual_places(prefix, row):
    return [place for place in range(prefix.visual_mask.shape[1]) if prefix.visual_mask[row, place]]


@torch.no_grad()
def test_a_token_that_is_left_out_is_as_if_it_were_not_there(tiny_model, halved):
    prefix, masked = halved
    response = torch.full((len(prefix), 4), tiny_model.mask_token_id)
    found = tiny_model.denoise(hide(prefix, masked, tiny_model.mask_embedding, "left out"), response)
    for row in range(len(prefix)):
        kept = ~masked[row]
        one = prefix.select(torch.tensor([row]))
        shorter = replace(
            one,
            embeds=one.embeds[:, kept],
            attention_mask=one.attention_mask[:, kept],
            visual_mask=one.visual_mask[:, kept],
            locations=one.locations[:, kept],
        )
        torch.testing.assert_close(
            found[row : row + 1], tiny_model.denoise(shorter, response[:1]), atol=1e-5, rtol=1e-4
        )


def test_only_visual_tokens_are_hidden_and_only_in_known_ways(tiny_model, halved):
    prefix, masked = halved
    for substitute in ("mask", "zeros", "mean", "left out"):
        with pytest.raises(ValueError, match="only visual tokens"):
            hide(prefix, ~prefix.visual_mask, tiny_model.mask_embedding, substitute)
    with pytest.raises(DispError, match=r"unknown substitute of a masked token 'zero'.*Did you mean 'zeros'"):
        hide(prefix, masked, tiny_model.mask_embedding, "zero")
