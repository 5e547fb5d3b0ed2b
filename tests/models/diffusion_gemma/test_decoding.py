"""DiffusionGemma's decoding against the library's own ``generate``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from references.diffusion_gemma import (
    CANVAS,
    library_decode,
    library_twin,
)

from disp.decoding.canvas import accept, draw_tokens
from disp.decoding.generate import decode
from disp.decoding.samplers import decode_config
from disp.errors import DispError
from disp.models.canvas import CanvasSampling


@pytest.fixture(scope="module")
def steady(build):
    """Layers add little to the canvas, so that it comes to rest and last digits do not grow from step to step."""
    model = build()
    for name, value in model.state_dict().items():
        if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
            value.mul_(0.3)
    model.model.decoder.self_conditioning.down_proj.weight.data.mul_(0.01)
    return model


@pytest.fixture(scope="module")
def steady_native(steady, tmp_path_factory):
    return library_twin(steady, tmp_path_factory.mktemp("steady"))


def test_accept_by_hand():
    entropies = torch.tensor([[0.5, 0.02, 0.0, 0.09, 0.07, 0.3], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]])
    # 0, .02, .07 and .09 are kept: those before .09 sum to .09, those before .3 to .18.
    assert accept(entropies, 0.1).tolist() == [[False, True, True, True, True, False], [False] * 5 + [True]]


def test_draws_follow_the_probabilities():
    logits = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0)) * 2
    logits[..., [0, 4, 19]] = -torch.inf
    probabilities = logits.softmax(-1)
    uniforms = torch.from_numpy(np.random.default_rng(0).random((2, 3)))
    uniforms[0, 0], uniforms[1, 2] = 0.0, 1 - 2**-53
    tokens = draw_tokens(probabilities, uniforms)
    for row in range(2):
        for slot in range(3):
            cumulative, total = 0.0, float(probabilities[row, slot].double().sum())
            for token in range(20):
                cumulative += float(probabilities[row, slot, token])
                if float(uniforms[row, slot]) * total < cumulative:
                    break
            assert tokens[row, slot] == token
    assert not torch.isin(tokens, torch.tensor([0, 4, 19])).any()


@pytest.mark.parametrize(
    ("sampling", "early", "apart"),
    [
        (CanvasSampling(), False, False),
        (CanvasSampling(t_min=0.05, t_max=0.3, entropy_bound=4.0, confidence_threshold=1.0), True, True),
        (CanvasSampling(0.02, 0.1, entropy_bound=4.0, confidence_threshold=1.0, stability_threshold=2), True, False),
    ],
)
def test_decoding_is_the_library_s(steady, steady_native, questions, sampling, early, apart, monkeypatch):
    """Two canvases of ten steps, with and without an early end; then all rows, which may end apart, at once."""
    steps, length = 10, 2 * CANVAS
    monkeypatch.setattr(steady, "sampling", sampling)
    config = decode_config(sampler="canvas", gen_length=length, steps=steps)
    expected, counts = [], []
    for query in questions:
        ids, count = library_decode(steady_native, steady, query, query.key, length, sampling, steps, monkeypatch)
        ours = decode(steady, steady.encode([query]), config, keys=[query.key], seed=3)
        assert torch.equal(ours[0], ids)
        expected.append(ids)
        counts.append(count)
    assert (max(counts) < 2 * steps) == early
    assert (len(set(counts)) > 1) == apart
    batch = decode(steady, steady.encode(questions), config, keys=[query.key for query in questions], seed=3)
    assert torch.equal(batch, torch.stack(expected))


def test_every_slot_is_answered_with_masked_visual_tokens(gemma, questions):
    prefix = gemma.encode(questions)
    hidden = prefix.with_masked(prefix.visual_mask, gemma.mask_embedding)
    keys = [query.key for query in questions]
    for config in (
        decode_config(sampler="canvas", gen_length=CANVAS, steps=4),
        decode_config(gen_length=CANVAS, steps=3),
        decode_config(gen_length=CANVAS, steps=3, prefix_cache=True),
    ):
        ids = decode(gemma, hidden, config, keys=keys)
        assert ids.shape == (3, CANVAS)
        assert (ids != gemma.mask_token_id).all()
    assert torch.equal(ids, decode(gemma, hidden, replace(config, prefix_cache=False)))


def test_what_follows_an_end_token_is_padding(build, questions):
    model = build()
    ids = None
    for seed in range(40):
        ids = decode(
            model,
            model.encode(questions),
            decode_config(sampler="canvas", gen_length=8, steps=1),
            keys=["a", "b", "c"],
            seed=seed,
        )
        # Make a token that was predicted an end of turn, and decode again.
        token = int(ids[0, 1])
        if token not in ids[:, 0].tolist() and int(ids[0, 0]) not in model.end_token_ids:
            break
    model.end_token_ids = (token, model.end_token_ids[-1])
    again = decode(
        model,
        model.encode(questions),
        decode_config(sampler="canvas", gen_length=8, steps=1),
        keys=["a", "b", "c"],
        seed=seed,
    )
    assert again[0].tolist() == [*ids[0, :2].tolist(), *[model.end_token_ids[-1]] * 6]


def test_options_of_other_samplers_are_errors(gemma, questions, tiny_model):
    prefix = gemma.encode(questions[:1])
    for options, word in (({"temperature": 1.0}, "temperature"), ({"block_length": CANVAS + 1}, "block_length")):
        with pytest.raises(DispError, match=word):
            config = decode_config(**{"sampler": "canvas", "gen_length": CANVAS + 1, "steps": 2, **options})
            decode(gemma, prefix, config, keys=["a"])
    with pytest.raises(ValueError, match="keys"):
        decode(gemma, prefix, decode_config(sampler="canvas"))
    with pytest.raises(DispError, match="BuiltinModel"):
        decode(tiny_model, prefix, decode_config(sampler="canvas"), keys=["a"])
