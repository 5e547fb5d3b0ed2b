"""LLaDA-V's loss and training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from references.llada_v import (
    Reference,
    noise_picture,
)
from safetensors.torch import load_file

from disp.errors import DispError
from disp.models.llada_v.model import turns_of
from disp.models.loading import load_model
from disp.models.merging import merge
from disp.training.config import TrainConfig
from disp.training.train import train


def conversation(model, roles: list[str], source: np.random.Generator) -> tuple[list[int], list[int], list[int]]:
    """Ids, published labels and turns of messages with random contents; an image in each user's."""
    ids_of = model.config.token_ids
    start, end, eot = ids_of["start_header"], ids_of["end_header"], ids_of["eot"]
    ids, labels, turns = [ids_of["bos"]], [ids_of["bos"]], [0]
    turn, answered = 0, False
    for role in roles:
        content = source.integers(60, 200, int(source.integers(2, 5))).tolist()
        if role == "user":
            turn, answered = (turn + 1, False) if answered else (turn, False)
            content = [-200, *content]
        answered |= role == "assistant"
        body = [start, {"system": 50, "user": 51, "assistant": 52}[role], end, 55, *content, eot]
        keep = set() if role != "assistant" else set(range(len(body)))
        ids += body
        labels += [token if index in keep or token in (start, end, eot) else -100 for index, token in enumerate(body)]
        turns += [turn] * len(body)
    return ids, labels, turns


@pytest.mark.parametrize("roles", [
    ["system", "user", "assistant"],
    ["user", "assistant", "user", "assistant"],
    ["system", "user", "assistant", "user", "user", "assistant", "assistant", "user", "assistant", "user"],
])  # fmt: skip
@pytest.mark.parametrize("with_turns", [False, True])
def test_sequence_loss(model, checkpoint, roles, with_turns):
    reference, source = Reference(checkpoint), np.random.default_rng(3)
    ids, labels, turns = conversation(model, roles, source)
    pictures = [noise_picture(40 + 20 * index, 60, index) for index in range(ids.count(-200))]
    with torch.no_grad():
        prefix = model.splice(torch.tensor(ids), pictures)
        embeds, _ = reference.splice(ids, pictures)
    # Labels and turns of the spliced sequence.
    long_labels, long_turns = [], []
    per_image = (len(embeds) - len(ids)) // len(pictures) + 1
    for token, label, turn in zip(ids, labels, turns, strict=True):
        count = per_image if token == -200 else 1
        long_labels += [-100 if token == -200 else label] * count
        long_turns += [turn] * count
    t, uniforms = 0.6, source.random(len(embeds))
    p = 0.999 * t + 0.001
    noisy, masked = embeds.clone(), []
    for place, label in enumerate(long_labels):
        if label != -100 and uniforms[place] < p:
            noisy[place] = reference.embed([model.mask_token_id])[0]
            masked.append(place)
    seen = torch.tensor([[b <= a for b in long_turns] for a in long_turns]) if with_turns else None
    log_p = reference.logits(noisy, seen).log_softmax(-1)
    total = sum(-float(log_p.detach()[place, long_labels[place]]) / p for place in masked)
    expected = total / sum(label != -100 for label in long_labels)
    label_row = torch.tensor([long_labels])
    assert turns_of(label_row, model.config.token_ids["start_header"])[0].tolist() == long_turns
    loss = model.sequence_loss(
        prefix.embeds, label_row, torch.tensor([t]), torch.tensor(uniforms)[None], conversation_mask=with_turns
    )
    assert masked and loss.item() == pytest.approx(expected, abs=1e-4)


def test_loss_of_responses(model, checkpoint, queries):
    """Against one row at a time without any padding; the response alone is supervised."""
    reference, source = Reference(checkpoint), np.random.default_rng(5)
    clean = model.encode_responses([query.response for query in queries], 12)
    ratio, uniforms = torch.tensor([0.9, 0.5, 0.7, 1.0]), torch.tensor(source.random((4, 12)), dtype=torch.float32)
    with torch.no_grad():
        loss = model(clean, ratio, uniforms, **model.prepare(queries))
    total = 0.0
    for row, query in enumerate(queries):
        answer = [*model.tokenizer(query.response)["input_ids"], model.end_token_ids[0]]
        p = 0.999 * float(ratio[row]) + 0.001
        masked = [index for index in range(len(answer)) if float(uniforms[row, index]) < p]
        noisy = [model.mask_token_id if index in masked else token for index, token in enumerate(answer)]
        embeds = torch.cat((model.encode([query]).embeds[0].double(), reference.embed(noisy)))
        log_p = reference.logits(embeds)[-len(answer) :].log_softmax(-1)
        total += sum(-float(log_p.detach()[index, answer[index]]) / p for index in masked) / len(answer)
    assert loss.item() == pytest.approx(total / 4, abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "projector"},
        {"method": "full", "gradient_checkpointing": True},
        {"method": "full", "train_vision": True},
    ],
)
def test_training_and_reloading(checkpoint, samples, queries, tmp_path, options):
    config = TrainConfig(steps=3, batch_size=3, learning_rate=5e-3, warmup_steps=1, **options)
    trained = train(load_model(checkpoint), samples, config, tmp_path / "trained")
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "trained" / "model.safetensors")
    assert before.keys() == after.keys()  # unused weights too
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all("mm_projector" in name for name in changed) == (options["method"] == "projector") and changed
    assert ("model.image_newline" in changed) == (options["method"] == "full")
    assert any("vision_tower" in name for name in changed) == options.get("train_vision", False)
    again = load_model(tmp_path / "trained")
    response = torch.full((len(queries), 4), trained.mask_token_id)
    with torch.no_grad():
        expected = trained.denoise(trained.encode(queries), response)
        torch.testing.assert_close(again.denoise(again.encode(queries), response), expected, atol=1e-5, rtol=0)


def test_adapters_are_merged_under_the_published_names(checkpoint, samples, queries, tmp_path, monkeypatch):
    config = TrainConfig(steps=3, batch_size=3, learning_rate=5e-3, warmup_steps=1, method="lora", merge=False)
    monkeypatch.chdir(checkpoint.parent)
    tuned = train(load_model(checkpoint.name), samples, config, tmp_path / "run")
    monkeypatch.chdir(tmp_path)  # the adapter knows its base by a path that holds anywhere
    assert not (tmp_path / "run" / "model.safetensors").exists()
    merge(tmp_path / "run" / "adapter", tmp_path / "merged")
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"model.layers.1.mlp.up_proj.weight", "model.mm_projector.0.weight"} <= changed
    assert "model.embed_tokens.weight" not in changed
    assert json.loads((tmp_path / "merged" / "config.json").read_text()) == json.loads(
        (checkpoint / "config.json").read_text()
    )
    merged, response = load_model(tmp_path / "merged"), torch.full((len(queries), 4), tuned.mask_token_id)
    with torch.no_grad():
        expected = tuned.denoise(tuned.encode(queries), response)
        torch.testing.assert_close(merged.denoise(merged.encode(queries), response), expected, atol=1e-4, rtol=0)
    # The base may have moved.
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text(
        (tmp_path / "run" / "adapter" / "adapter_config.json").read_text().replace(str(checkpoint), "/nowhere/at/all")
    )
    with pytest.raises(DispError, match="/nowhere/at/all"):
        merge(tmp_path / "run" / "adapter", tmp_path / "again")
    merge(tmp_path / "run" / "adapter", tmp_path / "again", base=checkpoint)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name], after[name]) for name in after)
    with pytest.raises(DispError, match="another folder"):
        merge(tmp_path / "merged", tmp_path / "merged")
    with pytest.raises(DispError, match="no adapter"):
        merge(tmp_path / "merged", tmp_path / "more", base=checkpoint)
