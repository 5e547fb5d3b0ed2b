"""MMaDA's loss and training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from references.mmada import llama

from disp.data.sample import Sample, Turn
from disp.models.mmada.loading import load_official
from disp.training.config import TrainConfig
from disp.training.train import train


def test_sequence_loss_row_by_row(mmada):
    """Answers of different lengths: each row's cross-entropies over p, over its own number of slots; then the mean."""
    torch.manual_seed(1)
    ids, uniforms, ratio = torch.randint(0, 250, (3, 14)), torch.rand(3, 14), torch.tensor([0.9, 0.3, 0.0])
    starts = (4, 9, 2)
    answer = torch.stack([torch.arange(14) >= start for start in starts])
    uniforms[2, 5] = 0.0005  # below the floor, the only masked token of its row
    expected = 0.0
    other = llama(mmada)
    with torch.no_grad():
        for row, start in enumerate(starts):
            p = 0.999 * float(ratio[row]) + 0.001
            noisy = ids[row].clone()
            masked = [j for j in range(start, 14) if float(uniforms[row, j]) < p]
            noisy[masked] = mmada.mask_token_id
            logits = other(noisy[None], attention_mask=torch.ones((1, 1, 14, 14), dtype=torch.bool)).logits[0]
            for j in masked:
                expected += float(F.cross_entropy(logits[j], ids[row, j])) / p / (14 - start) / 3
    loss = mmada.sequence_loss(ids, answer, ratio, uniforms).detach()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    # One answer length: the query's loss is the same number.
    prefix = mmada.embed_ids(ids[:, :4], torch.zeros((3, 4), dtype=torch.bool))
    whole = mmada.sequence_loss(ids, torch.arange(14).expand(3, 14) >= 4, ratio, uniforms)
    torch.testing.assert_close(mmada.noisy_loss(prefix, ids[:, 4:], ratio, uniforms[:, 4:]), whole)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_steps(checkpoint, tmp_path, pictures, method):
    """Loss is finite, the language model learns, the image tokenizer does not change."""
    model = load_official(checkpoint)
    model.gen_length = 8
    samples = [Sample("a", (pictures[0],), (Turn("<image>\nWhat?", "cat"),)), Sample("b", (), (Turn("Who?", "dog"),))]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = TrainConfig(steps=3, batch_size=2, learning_rate=1e-2, method=method, gradient_checkpointing=True)
    trained = train(model, samples, config, tmp_path / "out")
    changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    assert all(tensor.isfinite().all() for tensor in trained.state_dict().values())
    assert not any(name.startswith("vision_tower.") for name in changed)
    assert {f"{name}.weight" for name in model.lora_modules()} <= changed
    assert ("model.embed_tokens.weight" in changed) == (method == "full")


def test_gradient_checkpointing_changes_nothing(checkpoint, asked):
    model = load_official(checkpoint).train()
    clean = model.encode_responses([query.response for query in asked], 8)
    ratio, uniforms = torch.rand(4), torch.rand(4, 8)
    gradients = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(clean=clean, ratio=ratio, uniforms=uniforms, **model.prepare(asked)).backward()
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])
