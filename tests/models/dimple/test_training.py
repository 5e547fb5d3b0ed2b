"""Dimple's loss and training."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from references.dimple import photo, write
from safetensors.torch import load_file

from disp.data.sample import Sample, Turn
from disp.models.dimple.padding import padded_lengths
from disp.models.loading import load_model
from disp.models.merging import merge
from disp.training.config import TrainConfig
from disp.training.train import train


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 63])
def test_padding_is_as_long_as_published(count):
    most = 2 ** math.ceil(math.log2(count + 1)) if count < 16 else (count // 16 + 1) * 16
    clean = torch.full((200, 80), 2)
    clean[:, :count] = 7
    draws = (torch.arange(200) + 0.5) / 200
    lengths = padded_lengths(clean, 2, draws).tolist()
    assert set(lengths) == set(range(count + 1, most + 1))
    full = torch.full((1, count + 1), 7)
    assert padded_lengths(full, 2, torch.tensor([0.5])).tolist() == [count + 1]


@torch.no_grad()
def test_loss_against_loops(model, dialogues):
    prefix, length = model.encode(dialogues), 12
    random = torch.Generator().manual_seed(3)
    clean = torch.randint(5, 100, (4, length), generator=random)
    padding = model.end_token_ids[-1]
    for row, count in enumerate((2, 5, 0, 12)):
        clean[row, count:] = padding
    ratio, uniforms = torch.tensor([0.3, 0.6, 0.9, 0.5]), torch.rand(4, length, generator=random)
    uniforms[:, -1] = torch.tensor([0.0, 0.99, 0.2, 0.4])
    losses = []
    for row, (answer, at_most) in enumerate(((2, 4), (5, 8), (0, 1), (12, 12))):
        there = min(answer + 1 + int(uniforms[row, -1] * (at_most - answer)), 12)
        masked = uniforms[row, :there] < 0.001 + 0.999 * ratio[row]
        noisy = torch.where(masked, model.mask_token_id, clean[row, :there])[None]
        logits = model.denoise(prefix.select(torch.tensor([row])), noisy)[0]
        losses += [F.cross_entropy(logits[slot], clean[row, slot]) for slot in masked.nonzero()[:, 0].tolist()]
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(model.noisy_loss(prefix, clean, ratio, uniforms), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_loss_of_whole_sequences_is_that_of_the_response(model, dialogues):
    inputs = model.prepare(dialogues)
    prefix, length = model.embed(**inputs), 6
    clean = torch.randint(5, 100, (4, length), generator=torch.Generator().manual_seed(4))
    ratio, uniforms = torch.full((4,), 0.6), torch.rand(4, length, generator=torch.Generator().manual_seed(5))
    ids = torch.cat((inputs["token_ids"], clean), dim=1)
    there = torch.cat((inputs["attention_mask"], torch.ones_like(clean, dtype=torch.bool)), dim=1)
    whole = model.embed(ids, there, inputs["grids"], inputs["patches"])
    answers = torch.arange(ids.shape[1]).expand_as(ids) >= inputs["token_ids"].shape[1]
    draws = torch.cat((torch.zeros(inputs["token_ids"].shape), uniforms), dim=1)
    # No padding in the answers, so every slot is there.
    expected = model.noisy_loss(prefix, clean, ratio, uniforms)
    torch.testing.assert_close(model.sequence_loss(whole, ids, answers, ratio, draws), expected, atol=1e-5, rtol=1e-5)


def test_nothing_masked_is_no_loss_and_no_gradient(make_dimple, dialogues):
    model = make_dimple()
    inputs = model.prepare(dialogues[:1])
    clean, uniforms = torch.full((1, 4), 7), torch.full((1, 4), 0.9)
    loss = model(clean, torch.tensor([0.5]), uniforms, **inputs)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    model(clean, torch.tensor([0.95]), uniforms, **inputs).backward()
    assert model.img_projector.linear_1.weight.grad.any()


def test_parts_are_found_by_name(model):
    names = [name for name, _ in model.named_parameters()]
    vision = [name for name in names if any(part in name for part in model.vision_names)]
    projector = [name for name in names if any(part in name for part in model.projector_names)]
    assert len(vision) == len(list(model.visual.parameters())) and len(projector) == 4
    assert len(model.lora_modules()) == 7 * model.config.num_hidden_layers
    assert all(isinstance(model.get_submodule(name), torch.nn.Linear) for name in model.lora_modules())


@pytest.mark.parametrize("method", ["projector", "lora"])
def test_a_fine_tuned_checkpoint_keeps_the_published_names(model, dialogues, tmp_path, method):
    weights = write(model, tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    samples = [Sample(str(n), (photo(56, 84, n),), (Turn("<image>\nA cat?", "Yes."),)) for n in range(3)]
    config = TrainConfig(steps=2, batch_size=2, learning_rate=0.01, method=method, merge=False)
    train(load_model(tmp_path / "base", device="cpu", gen_length=8), samples, config, tmp_path / "tuned")
    merge(tmp_path / "tuned" / "adapter", tmp_path / "merged")
    written = load_file(tmp_path / "merged" / "model.safetensors")
    assert written.keys() == weights.keys()
    changed = {name for name in weights if not written[name].equal(weights[name])}
    assert all(name.startswith(("img_projector.", "model.layers.")) for name in changed)
    assert any(name.startswith("img_projector.") for name in changed)
    assert any(name.startswith("model.layers.") for name in changed) == (method == "lora")
    again = load_model(tmp_path / "merged", device="cpu")
    assert all(again.state_dict()[name].equal(written[name]) for name in weights)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["model_type"] == "dimple"
