"""DiffusionGemma's loss and training."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from references.diffusion_gemma import (
    CANVAS,
    random_canvas,
)
from torch.utils.checkpoint import checkpoint

from disp.data.loading import load_dataset
from disp.data.sample import Sample, Turn
from disp.decoding.samplers import decode_config
from disp.models.diffusion_gemma.loading import load_official
from disp.purification.config import PurifyConfig
from disp.purification.purify import purify
from disp.suspicion.config import SaliencyConfig, ScoringConfig
from disp.training.config import TrainConfig
from disp.training.train import train


@torch.no_grad()
def test_loss_by_hand(gemma, questions):
    prefix = gemma.encode(questions)
    clean = gemma.encode_responses(["A cat", "Yes", ""], CANVAS)
    ratio = torch.tensor([0.3, 0.500007, 0.9])
    uniforms = torch.from_numpy(np.random.default_rng(1).random((3, CANVAS))).float()
    total, conditioned = 0.0, []
    for row in range(3):
        t = 1e-3 + (1 - 1e-3) * float(ratio[row])
        canvas = clean[row].clone()
        for slot in range(CANVAS):
            if float(uniforms[row, slot]) < t:
                canvas[slot] = int(float(uniforms[row, slot]) / t * gemma.vocab_size)
        encoded = gemma.cache_prefix(gemma.encode(questions[row : row + 1]))
        logits = gemma.denoise_canvas(encoded, canvas[None])
        conditioned.append(int(t * 2**16) % 2 == 1)
        if conditioned[-1]:
            logits = gemma.denoise_canvas(encoded, canvas[None], logits)
        for slot in range(CANVAS):
            total -= float(logits[0, slot].double().log_softmax(-1)[clean[row, slot]])
    assert len(set(conditioned)) == 2
    assert float(gemma.noisy_loss(prefix, clean, ratio, uniforms)) == pytest.approx(total / (3 * CANVAS), rel=1e-5)


@torch.no_grad()
def test_half_of_the_rows_are_conditioned_and_noise_is_uniform(gemma, questions, monkeypatch):
    seen = {}

    def denoise_canvas(encoded, canvas, self_conditioning=None, conditioned=None):
        seen.update(canvas=canvas, conditioned=conditioned)
        return torch.zeros(*canvas.shape, gemma.vocab_size)

    monkeypatch.setattr(gemma, "denoise_canvas", denoise_canvas)
    monkeypatch.setattr(gemma, "cache_prefix", lambda prefix: None)
    draws = np.random.default_rng(0)
    ratio, uniforms = torch.from_numpy(draws.random(2000)).float(), torch.from_numpy(draws.random((2000, 40))).float()
    clean = torch.full((2000, 40), -1)
    gemma.noisy_loss(None, clean.clamp(min=0), ratio, uniforms)
    assert abs(float(seen["conditioned"].float().mean()) - 0.5) < 0.05
    gemma.noisy_loss(None, clean.clamp(min=0), torch.ones(2000), uniforms)
    counts = seen["canvas"].flatten().bincount(minlength=gemma.vocab_size).float()
    expected = seen["canvas"].numel() / gemma.vocab_size
    assert ((counts - expected).square() / expected).sum() / gemma.vocab_size < 1.3  # χ² over its degrees of freedom


def test_loss_trains_projector_encoder_and_self_conditioning(build, questions):
    model = build()
    clean = model.encode_responses(["A cat", "Yes", ""], CANVAS)
    uniforms = torch.from_numpy(np.random.default_rng(1).random((3, CANVAS))).float()
    loss = model(clean, torch.tensor([0.3, 0.500007, 0.9]), uniforms, **model.prepare(questions))
    loss.backward()
    for part in ("embed_vision", "self_conditioning.up_proj", "vision_tower.patch_embedder", "experts.down_proj"):
        gradients = [p.grad for name, p in model.named_parameters() if part in name]
        assert gradients
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_gradient_checkpointing_changes_nothing(build, questions):
    clean = build().encode_responses(["A cat", "Yes", ""], CANVAS)
    uniforms = torch.from_numpy(np.random.default_rng(1).random((3, CANVAS))).float()
    gradients = []
    for checkpointing in (False, True):
        model = build().train()
        if checkpointing:
            model._set_gradient_checkpointing(gradient_checkpointing_func=partial(checkpoint, use_reentrant=False))
            assert model.is_gradient_checkpointing
        model(clean, torch.tensor([0.3, 0.500007, 0.9]), uniforms, **model.prepare(questions)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-3, atol=1e-5), name


def test_adapters_act_in_encoder_and_decoder_and_merge_once(build, questions):
    model = build()
    targets = model.lora_modules()
    assert targets
    assert not any("vision_tower" in name or "router" in name for name in targets)
    config = LoraConfig(
        r=2, target_modules=targets, modules_to_save=list(model.projector_names), init_lora_weights=False
    )
    prefix = model.encode(questions)
    canvas = torch.cat([random_canvas(model, row) for row in range(3)])
    plain = model.denoise(prefix, canvas)
    adapted = get_peft_model(model, config)
    layers = model.model.encoder.language_model.layers, model.model.decoder.layers
    assert layers[0][0].self_attn.q_proj is layers[1][0].self_attn.q_proj
    assert layers[0][0].mlp.up_proj is layers[1][0].mlp.up_proj
    assert hasattr(layers[1][0].self_attn.q_proj, "lora_A")
    # The truth: the low-rank products added to the weights, in the library's own class.
    state = build().official_state_dict()
    for name, module in model.named_modules():
        if name in targets:
            published = name.replace("encoder.language_model", "decoder") + ".weight"
            state[published] = state[published] + module.get_delta_weight("default").detach()
    truth = build()
    truth.load_state_dict(state, strict=False)
    expected = truth.denoise(prefix, canvas)
    effect = (expected - plain).abs().max()
    assert effect > 1
    assert (model.denoise(prefix, canvas) - expected).abs().max() < 1e-3 * effect
    merged = adapted.merge_and_unload()
    assert (merged.denoise(prefix, canvas) - expected).abs().max() < 1e-3 * effect
    assert merged.official_state_dict().keys() == state.keys()


@pytest.mark.parametrize("method", ["projector", "lora"])
def test_fine_tuning_and_reloading(build, tmp_path, questions, method):
    model = build()
    before = {name: value.clone() for name, value in model.official_state_dict().items()}
    samples = [
        Sample("a", questions[0].images, (Turn("<image>\nDescribe it.", "A cat"),)),
        Sample("c", (), (Turn("Hi", "Yes"),)),
    ]
    model = train(
        model, samples, TrainConfig(steps=2, learning_rate=1e-3, batch_size=2, method=method, lora_rank=2), tmp_path
    )
    after = model.official_state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.encoder.embed_vision.embedding_projection.weight" in changed
    assert not any("vision_tower" in name for name in changed)
    assert ("model.decoder.layers.0.self_attn.q_proj.weight" in changed) == (method == "lora")
    if method == "lora":
        # The adapter's file names shared modules once, by their places in the encoder.
        with pytest.warns(UserWarning, match="missing adapter keys"):
            adapted = PeftModel.from_pretrained(build(), str(tmp_path / "adapter")).merge_and_unload()
        for name, value in adapted.official_state_dict().items():
            assert torch.allclose(value, after[name], atol=1e-6), name
    again = load_official(tmp_path)
    assert again.end_token_ids == model.end_token_ids
    assert all(torch.equal(value, after[name]) for name, value in again.official_state_dict().items())
    assert again.decode_responses(again.encode_responses(["A cat"], CANVAS)) == ["A cat"]


def test_purification_answers_every_slot(build, tmp_path):
    rows = []
    (tmp_path / "images").mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 256, (20, 12 + 10 * number, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "images" / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": "A cat"}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (tmp_path / "data.json").write_text(json.dumps(rows))
    model = build()
    settings = decode_config(gen_length=CANVAS, **{**model.generation_defaults, "steps": 3})
    scoring = ScoringConfig(candidates=3, saliency=SaliencyConfig(probes=2), batch_size=2)
    config = PurifyConfig(mode="all", mask_ratio=0.3, scoring=scoring, decode=settings, batch_size=2)
    purified = purify(model, load_dataset(tmp_path), config, tmp_path / "all")
    assert len(purified.rewritten) == 3
    config = PurifyConfig(mode="selective", scoring=scoring, decode=settings)
    selective = purify(model, load_dataset(tmp_path), config, tmp_path / "selective")
    assert all(np.isfinite(evidence.suspicion) for evidence in selective.evidence.values())
