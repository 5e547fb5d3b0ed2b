"""LaViDa's loss and training."""

from __future__ import annotations

import pytest
import torch
from references.lavida import (
    EOS,
    EOT,
    FILL,
    MASK,
    left_padded,
    make,
    noise,
    reference_hidden,
)

from disp.data.sample import Query, Sample, Turn
from disp.decoding.generate import generate
from disp.decoding.samplers import decode_config
from disp.models.lavida.masks import complementary_pair
from disp.models.loading import load_model
from disp.training.config import TrainConfig
from disp.training.train import train


def test_the_complementary_pair_by_loops():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 60, (5, 12), generator=generator)
    labels[:, :4] = -100
    labels[2, 7] = FILL
    uniforms = torch.rand((5, 12), generator=generator)
    ratio = torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0])
    uniforms[0, 6] = 1e-4  # the smallest of its row, and nothing else falls below p = 0.001
    masked, targets = complementary_pair(labels, ratio, uniforms, fill=FILL)
    for row in range(5):
        p = max(0.999 * ratio[row].item() + 0.001, uniforms[row].min().item())
        for place in range(12):
            counts = labels[row, place] not in (-100, FILL)
            drawn = uniforms[row, place].item() <= p
            assert masked[row, place] == (counts and drawn)
            assert masked[5 + row, place] == (counts and not drawn)
            for half in (row, 5 + row):
                assert targets[half, place] == (labels[row, place] if masked[half, place] else -100)
    assert int(masked.sum()) == int(((labels != -100) & (labels != FILL)).sum())
    assert masked[0].nonzero().flatten().tolist() == [6]


def test_one_token_is_drawn_even_where_it_cannot_be_masked():
    """The published guarantee is over the whole row: it may fall on the prompt, and then the first mask is empty."""
    labels = torch.tensor([[-100, 5, 6]])
    masked, _ = complementary_pair(labels, torch.zeros(1), torch.tensor([[0.2, 0.5, 0.6]]))
    assert masked.tolist() == [[False, False, False], [False, True, True]]


@torch.no_grad()
def test_the_loss_is_the_mean_over_two_passes_without_weights(model):
    prefix, _ = left_padded(model)
    clean = torch.tensor([[9, 10, EOT, EOS, EOS], [12, 13, 14, 15, EOT]])
    ratio, uniforms = torch.tensor([0.4, 0.7]), torch.rand((2, 5), generator=torch.Generator().manual_seed(1))
    p = torch.maximum(0.999 * ratio[:, None] + 0.001, uniforms.min(1, keepdim=True).values)
    drawn, total = uniforms <= p, 0.0
    for masked in (drawn, ~drawn):
        log_p = model.denoise(prefix, clean.where(~masked, MASK)).log_softmax(-1)
        for row in range(2):
            for slot in range(5):
                if masked[row, slot]:
                    total -= float(log_p[row, slot, clean[row, slot]])
    assert model.noisy_loss(prefix, clean, ratio, uniforms).item() == pytest.approx(total / 10, rel=1e-6)


def test_supervised_tokens_anywhere_in_a_sequence(model):
    """Two answers in one row, as of a conversation; nothing supervised in the other: no target, no NaN."""
    embeds = torch.randn((2, 9, 32), generator=torch.Generator().manual_seed(2)).double().requires_grad_()
    labels = torch.full((2, 9), -100)
    labels[0, [2, 3, 7]] = torch.tensor([5, 6, 7])
    uniforms = torch.full((2, 9), 0.9)
    uniforms[0, 3] = 0.1
    loss = model.sequence_loss(embeds, labels, torch.tensor([0.5, 0.5]), uniforms)
    total = 0.0
    for places in ([3], [2, 7]):
        noisy = embeds[:1].clone()
        noisy[:, places] = model.mask_embedding
        hidden = reference_hidden(model, noisy, torch.ones((1, 9, 9), dtype=torch.bool))
        log_p = model.lm_head(hidden)[0].log_softmax(-1)
        for place in places:
            total -= float(log_p.detach()[place - (model.config.variant == "dream"), labels[0, place]])
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)
    loss.backward()
    assert embeds.grad[0].abs().sum() > 0
    nothing = model.sequence_loss(embeds, torch.full((2, 9), -100), torch.tensor([0.5, 0.5]), uniforms)
    assert nothing.item() == 0


def test_gradients_reach_newline_projector_and_tower():
    model = make("dream").train()
    prefix = model.splice(torch.tensor([3, -200, 5]), [noise(90, 40)])
    clean = torch.tensor([[9, 10, EOT, EOS]])
    model.noisy_loss(prefix, clean, torch.tensor([0.5]), torch.tensor([[0.1, 0.9, 0.2, 0.8]])).backward()
    for name in ("model.image_newline", "model.mm_projector.0.weight", "model.layers.0.self_attn.k_proj.bias"):
        assert model.get_parameter(name).grad.abs().sum() > 0, name
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("method", ["full", "lora"])
def test_fine_tuning_from_checkpoint_to_checkpoint(dream_folder, tmp_path, method):
    """The saved model has the published key names, answers, and differs from the one it came from."""
    model = load_model(dream_folder, device="cpu", dtype="float32", gen_length=8)
    samples = [
        Sample("a", (noise(90, 40),), (Turn("<image>\nWhat?", "A cat."),)),
        Sample("b", (noise(30, 70), noise(60, 20)), (Turn("<image> or <image>?", "Both."), Turn("Why?", "No."))),
    ]
    before = {name: tensor.clone() for name, tensor in model.official_state_dict().items()}
    train(model, samples, TrainConfig(steps=2, learning_rate=1e-3, batch_size=3, method=method, lora_rank=2), tmp_path)
    again = load_model(tmp_path, device="cpu", dtype="float32")
    after = again.official_state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)
    query = Query("a", 0, samples[0].images, (), "<image>\nWhat?")
    config = decode_config(gen_length=again.gen_length, **again.generation_defaults)
    assert config.sampler == "dream"
    assert len(generate(again, [query], config)) == 1
