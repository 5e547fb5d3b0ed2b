"""DiffusionGemma's network against the library's."""

from __future__ import annotations

import pytest
import torch
from references.diffusion_gemma import (
    CANVAS,
    WINDOW,
    native_inputs,
    native_logits,
    random_canvas,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from disp.errors import DispError
from disp.suspicion.saliency import first_step


@pytest.mark.parametrize("row", [0, 1, 2])
@torch.no_grad()
def test_logits_are_the_library_s(gemma, native, questions, row):
    canvas = random_canvas(gemma, row)
    ours = gemma.denoise(gemma.encode([questions[row]]), canvas)
    expected = native_logits(native, native_inputs(gemma, questions[row]), canvas)
    assert ours.std() > 0.1
    assert (ours - expected).abs().max() < 1e-4
    # With self-conditioning too; and the tokens of a picture do see each other.
    encoded = gemma.cache_prefix(gemma.encode([questions[row]]))
    inputs = native_inputs(gemma, questions[row])
    again = native_logits(native, inputs, canvas, self_conditioning_logits=ours)
    assert (gemma.denoise_canvas(encoded, canvas, ours) - again).abs().max() < 1e-4
    inputs["mm_token_type_ids"] = torch.zeros_like(inputs["mm_token_type_ids"])
    causal = native_logits(native, inputs, canvas)
    assert bool((causal - expected).abs().max() > 1e-3) == bool(questions[row].images)


def test_gradient_at_visual_tokens_is_the_library_s(gemma, native, questions):
    inputs = native_inputs(gemma, questions[1])
    features = native.model.encoder.get_image_features(
        inputs.pop("pixel_values"), inputs.pop("image_position_ids")
    ).pooler_output.detach()
    features.requires_grad_()
    prefix = gemma.encode([questions[1]])
    embeds, logits = first_step(gemma, prefix, CANVAS)
    canvas = gemma.random_ids("canvas", CANVAS)[None]
    inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=features)}
    expected_logits = native_logits(native, inputs, canvas)
    token = int(expected_logits[0, 0].argmax())
    (expected,) = torch.autograd.grad(expected_logits[0, 0].log_softmax(-1)[token], features)
    (ours,) = torch.autograd.grad(logits[0, 0].log_softmax(-1)[token], embeds)
    assert expected.abs().max() > 1e-3
    assert (ours[prefix.visual_mask] - expected).abs().max() < 1e-4 * max(1, expected.abs().max())


@torch.no_grad()
def test_rows_of_a_batch_equal_single_rows(gemma, questions):
    prefix = gemma.encode(questions)
    assert prefix.attention_mask.sum(-1).min() < prefix.attention_mask.shape[1] - WINDOW
    canvas = torch.cat([random_canvas(gemma, row) for row in range(3)])
    batched = gemma.denoise(prefix, canvas)
    for row, query in enumerate(questions):
        single = gemma.encode([query])
        assert (gemma.denoise(single, canvas[row : row + 1])[0] - batched[row]).abs().max() < 1e-4
        valid = prefix.attention_mask[row]
        assert torch.allclose(prefix.extras["substitutes"][row, valid], single.extras["substitutes"][0], atol=1e-6)


@torch.no_grad()
def test_open_slots_hold_the_same_noise_always(gemma, questions):
    prefix = gemma.encode(questions)
    canvas = torch.full((3, CANVAS), gemma.mask_token_id)
    canvas[:, 2] = 5
    noise = gemma.random_ids("canvas", CANVAS)
    expected = noise.clone()
    expected[2] = 5
    assert torch.equal(gemma.random_ids("canvas", 3), noise[:3])
    ours = gemma.denoise(prefix, canvas)
    assert torch.equal(ours, gemma.denoise_canvas(gemma.cache_prefix(prefix), expected.expand(3, -1)))


@torch.no_grad()
def test_cache_is_exact_and_never_written(gemma, questions):
    prefix = gemma.encode(questions)
    cache = gemma.cache_prefix(prefix)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.past_key_values.layers]
    for seed in range(2):
        canvas = random_canvas(gemma, seed).expand(3, -1)
        assert torch.equal(gemma.denoise(prefix, canvas, cache), gemma.denoise(prefix, canvas))
    rows = torch.tensor([2, 1])
    part = gemma.denoise(prefix.select(rows), canvas[:2], cache.select(rows))
    assert (part - gemma.denoise(prefix, canvas)[rows]).abs().max() < 1e-5
    gemma.append(cache, canvas)
    for layer, (keys, values) in zip(cache.past_key_values.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
    assert cache.past_key_values.get_seq_length() == prefix.embeds.shape[1]


@pytest.mark.parametrize("row", [0, 2])
@torch.no_grad()
def test_a_finished_canvas_is_part_of_the_prompt(gemma, native, questions, row):
    finished, canvas = random_canvas(gemma, 5), random_canvas(gemma, 6)
    encoded = gemma.append(gemma.cache_prefix(gemma.encode([questions[row]])), finished)
    inputs = native_inputs(gemma, questions[row])
    inputs["input_ids"] = torch.cat((inputs["input_ids"], finished), dim=1)
    inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, CANVAS))
    inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, CANVAS), value=True)
    expected = native_logits(native, inputs, canvas)
    assert (gemma.denoise_canvas(encoded, canvas) - expected).abs().max() < 1e-4


def test_a_response_longer_than_the_canvas_is_an_error(gemma, questions):
    with pytest.raises(DispError, match="canvas"):
        gemma.denoise(gemma.encode(questions[:1]), torch.zeros(1, CANVAS + 1, dtype=torch.int64))
