"""Low-rank adapters: what their first weights follow from, and what a checkpoint of a run holds."""

import warnings
from dataclasses import replace

import pytest
import torch
from models.tiny import write_checkpoint
from safetensors.torch import load_file

from disp.models.loading import load_model
from disp.training.config import TrainConfig
from disp.training.parameters import select_parameters
from disp.training.train import train

LORA = TrainConfig(steps=2, batch_size=3, learning_rate=1e-3, method="lora", save_every=1)


def first_weights(model, seed):
    module = select_parameters(model, replace(LORA, seed=seed))
    return {name: value.detach().clone() for name, value in module.named_parameters() if "lora_A" in name}


def test_the_first_weights_follow_from_the_seed_alone(make_model):
    torch.manual_seed(1)
    one = first_weights(make_model(), 0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    model = make_model()
    torch.set_rng_state(before)
    again = first_weights(model, 0)
    assert torch.equal(torch.get_rng_state(), before)  # nothing else is drawn otherwise for it
    other = first_weights(make_model(), 1)
    assert one and all(torch.equal(again[name], value) for name, value in one.items())
    assert not any(torch.equal(other[name], value) for name, value in one.items())


@pytest.mark.parametrize("family", ["dimple", "mmada"])
def test_a_checkpoint_holds_the_adapter_alone_and_nobody_is_warned(family, samples, tmp_path):
    """MMaDA's published vocabulary is smaller than its embeddings, which PEFT takes for embeddings made larger."""
    texts = [samples[0].turns[0].prompt, *(sample.turns[0].response for sample in samples)]
    model = load_model(write_checkpoint(family, tmp_path / "base", texts), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, samples, LORA, tmp_path / "run")
    saved, last = (
        load_file(tmp_path / "run" / name / "adapter_model.safetensors")
        for name in ("adapter", "checkpoints/checkpoint-2")
    )
    assert saved.keys() == last.keys() and not any("embed" in name or "lm_head" in name for name in last)


def test_a_killed_run_of_adapters_ends_as_an_undisturbed_one(samples, tmp_path):
    class Killed(Exception):
        pass

    def kill(count):
        raise Killed

    texts = [samples[0].turns[0].prompt, *(sample.turns[0].response for sample in samples)]
    base = write_checkpoint("mmada", tmp_path / "base", texts)
    whole = train(load_model(base, device="cpu"), samples, LORA, tmp_path / "whole").state_dict()
    with pytest.raises(Killed):
        train(load_model(base, device="cpu"), samples, LORA, tmp_path / "killed", progress=kill)
    steps = []
    resumed = train(load_model(base, device="cpu"), samples, LORA, tmp_path / "killed", progress=steps.append)
    assert steps == [1, 1]
    assert all(torch.equal(resumed.state_dict()[name], value) for name, value in whole.items())
