"""Fine-tuning: what changes, what does not, and that a killed run ends as an undisturbed one."""

import json

import pytest
import torch

from disp.data.sample import Sample, Turn
from disp.errors import DispError
from disp.models.loading import load_model, save_model
from disp.training import TrainConfig, train

QUICK = TrainConfig(steps=4, batch_size=4, learning_rate=5e-3, warmup_steps=1)


@pytest.fixture
def samples(picture):
    return [
        Sample(f"s{index}", (picture(index),), (Turn("<image>\nDescribe the picture.", answer),))
        for index, answer in enumerate(["cat", "dog", "tree", "boat", "apple", "two"])
    ]


@pytest.fixture
def model(make_model):
    return make_model(initializer_range=0.05, gen_length=8)


def _changed(before, model):
    after = dict(model.named_parameters())
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def _weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    ("options", "changes", "keeps"),
    [
        ({}, ("model.layers", "lm_head", "mm_projector"), ("vision_tower",)),
        ({"method": "projector"}, ("mm_projector",), ("vision_tower", "model.layers", "lm_head", "embed_tokens")),
        ({"train_vision": True}, ("vision_tower", "model.layers"), ()),
    ],
)
def test_only_what_is_asked_for_is_trained(model, samples, tmp_path, options, changes, keeps):
    before = _weights(model)
    changed = _changed(before, train(model, samples, TrainConfig(**{**QUICK.__dict__, **options}), tmp_path))
    assert all(any(part in name for name in changed) for part in changes)
    assert not any(part in name for name in changed for part in keeps)


def test_the_loss_falls_and_the_saved_model_is_the_trained_one(model, samples, tmp_path):
    seen = []
    config = TrainConfig(steps=60, batch_size=6, learning_rate=1e-2, warmup_steps=5)
    trained = train(model, samples, config, tmp_path, progress=seen.append)
    assert sum(seen) == 60
    losses = [row["loss"] for row in json.loads((tmp_path / "train.json").read_text())["log_history"] if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    loaded = _weights(load_model(tmp_path))
    assert loaded.keys() == _weights(trained).keys()
    assert all(torch.equal(value, loaded[name]) for name, value in _weights(trained).items())


def test_a_killed_run_resumes_to_the_same_weights(make_model, samples, tmp_path):
    config = TrainConfig(steps=6, batch_size=4, learning_rate=5e-3, warmup_steps=1, save_every=2)
    whole = train(make_model(initializer_range=0.05, gen_length=8), samples, config, tmp_path / "whole")

    class Killed(Exception):
        pass

    steps = []

    def kill_after_five(count):
        steps.append(count)
        if len(steps) == 5:
            raise Killed

    model = make_model(initializer_range=0.05, gen_length=8)
    with pytest.raises(Killed):
        train(model, samples, config, tmp_path / "killed", progress=kill_after_five)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    resumed = train(make_model(initializer_range=0.05, gen_length=8), samples, config, tmp_path / "killed")
    for name, value in _weights(whole).items():
        torch.testing.assert_close(_weights(resumed)[name], value, rtol=0, atol=1e-6)


def test_lora_is_saved_as_an_adapter_that_loads_on_its_base(model, samples, tmp_path, queries):
    save_model(model, tmp_path / "base")
    base = load_model(tmp_path / "base")
    config = TrainConfig(**{**QUICK.__dict__, "method": "lora", "lora_rank": 4})
    merged = train(base, samples, config, tmp_path / "tuned")
    adapter = load_model(tmp_path / "tuned" / "adapter")
    response = torch.full((len(queries), 8), merged.mask_token_id)
    with torch.no_grad():
        tuned = merged.denoise(merged.encode(queries), response)
        torch.testing.assert_close(adapter.denoise(adapter.encode(queries), response), tuned, rtol=1e-4, atol=1e-5)
        untouched = load_model(tmp_path / "base")
        assert not torch.allclose(untouched.denoise(untouched.encode(queries), response), tuned, atol=1e-3)


def test_mistakes_are_named(model, samples, tmp_path):
    with pytest.raises(DispError, match="empty"):
        train(model, [], QUICK, tmp_path)
    with pytest.raises(DispError, match="steps must be positive, got 0"):
        TrainConfig(steps=0)
    with pytest.raises(DispError, match="does not exist"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    with pytest.raises(DispError, match="unknown model type"):
        load_model(tmp_path)
