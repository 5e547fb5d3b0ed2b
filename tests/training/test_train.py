"""Fine-tuning: what changes and what does not."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from models.tiny import write_checkpoint
from safetensors.torch import load_file

from disp.data.sample import Sample, Turn, queries_of
from disp.data.saving import save_dataset
from disp.errors import DispError
from disp.models.loading import load_model
from disp.models.saving import save_model
from disp.training import examples
from disp.training.config import TrainConfig
from disp.training.train import check_training, train

QUICK = TrainConfig(steps=4, batch_size=4, learning_rate=5e-3, warmup_steps=1)


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


@pytest.mark.parametrize("method", ["full", "lora"])
def test_projector_and_tower_learn_at_their_own_rates(model, samples, tmp_path, method):
    # Adam's first step moves every weight by the learning rate, whatever its gradient.
    config = TrainConfig(
        steps=1, batch_size=4, warmup_steps=0, learning_rate=4e-3, projector_learning_rate=2e-4,
        vision_learning_rate=1e-5, train_vision=True, method=method,
    )  # fmt: skip
    before = _weights(model)
    after = _weights(train(model, samples, config, tmp_path))
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    for part, rate in (("mm_projector", 2e-4), ("vision_tower", 1e-5)):
        assert max(value for name, value in moved.items() if part in name) == pytest.approx(rate, rel=0.02)
    if method == "full":
        assert moved["lm_head.weight"] == pytest.approx(4e-3, rel=0.02)


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


def test_any_seed_trains_and_whoever_may_read_the_folder_may_read_the_weights(model, samples, tmp_path):
    train(model, samples, replace(QUICK, steps=1, seed=-1), tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644


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


def test_features_are_kept_up_to_a_limit_whichever_row_comes_first(model, samples, monkeypatch, tmp_path):
    rows = [replace(samples[0], id="text", images=(), turns=(Turn("What?", "cat"),)), *samples]
    cached = examples.cached_features(model, queries_of(rows), {})
    size = sum(tensor.nbytes for tensors in cached.values() for tensor in tensors)
    assert size and not cached["text", 0]
    monkeypatch.setattr(examples, "FEATURE_CACHE_BYTES", size)
    assert examples.cached_features(model, queries_of(rows), {}).keys() == cached.keys()
    monkeypatch.setattr(examples, "FEATURE_CACHE_BYTES", size - 1)
    assert examples.cached_features(model, queries_of(rows), {}) is None


def test_features_of_an_earlier_run_are_taken_again(make_model, samples, monkeypatch, tmp_path):
    features = {}
    first = train(make_model(), samples, QUICK, tmp_path / "a", features=features)
    assert features.keys() == {(sample.id, 1) for sample in samples}
    monkeypatch.setattr(type(first), "image_features", None)
    again = train(make_model(), samples, QUICK, tmp_path / "b", features=features)
    assert not _changed(_weights(first), again)


# LLaVA's way, where an only picture is tiled and several are shown small, and the built-in one's.
@pytest.mark.parametrize("family", [None, "llada_v", pytest.param("lavida_llada", marks=pytest.mark.slow)])
def test_a_conversation_about_several_pictures_trains_alike_with_and_without_the_cache(
    make_model, picture, tmp_path, monkeypatch, family
):
    turns = (Turn("<image> What is this?", "cat"), Turn("<image> And this?", "dog"))
    rows = [Sample("two", (picture(1), picture(2)), turns), Sample("one", (picture(3),), turns[:1])]
    if family is not None:
        write_checkpoint(family, tmp_path / family, [text for turn in turns for text in (turn.prompt, turn.response)])

    def start():
        return make_model() if family is None else load_model(tmp_path / family, device="cpu")

    features = {}
    cached = train(start(), rows, QUICK, tmp_path / "cached", features=features)
    assert {key: len(tensors) for key, tensors in features.items()} == {("two", 1): 1, ("two", 2): 2, ("one", 1): 1}
    monkeypatch.setattr(examples, "FEATURE_CACHE_BYTES", 0)
    plain = train(start(), rows, QUICK, tmp_path / "plain")
    for name, value in _weights(cached).items():
        torch.testing.assert_close(_weights(plain)[name], value, rtol=0, atol=1e-5)


def test_recomputing_activations_changes_nothing(make_model, samples, tmp_path):
    runs = []
    for recompute in (False, True):
        config = TrainConfig(**{**QUICK.__dict__, "gradient_checkpointing": recompute})
        model = train(make_model(initializer_range=0.05, gen_length=8), samples, config, tmp_path / str(recompute))
        assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        runs.append(_weights(model))
    assert all(torch.allclose(runs[0][name], runs[1][name], atol=1e-6) for name in runs[0])


def test_accumulated_batches_are_one_batch(make_model, samples, tmp_path):
    weights = []
    for size, accumulated in ((4, 1), (2, 2)):
        config = TrainConfig(
            steps=3,
            batch_size=size,
            learning_rate=5e-3,
            warmup_steps=0,
            trainer={"gradient_accumulation_steps": accumulated, "adam_epsilon": 1e-3},
        )
        model = make_model(initializer_range=0.05, gen_length=8)
        weights.append(_weights(train(model, samples, config, tmp_path / str(size))))
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])


def test_adapters_alone(make_model, samples, tmp_path):
    save_model(make_model(initializer_range=0.05), tmp_path / "base")
    base = load_model(tmp_path / "base", gen_length=8)
    config = TrainConfig(**{**QUICK.__dict__, "method": "lora", "merge": False})
    tuned = train(base, samples, config, tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists() and (tmp_path / "run" / "train.json").is_file()
    adapter, response = load_model(tmp_path / "run" / "adapter"), torch.full((6, 8), tuned.mask_token_id)
    assert adapter.gen_length == 8
    prompts = queries_of(samples)
    with torch.no_grad():
        expected = tuned.denoise(tuned.encode(prompts), response)
        torch.testing.assert_close(adapter.denoise(adapter.encode(prompts), response), expected, rtol=1e-4, atol=1e-5)
    # An adapter of it would name the base alone, and this one would be lost.
    with pytest.raises(DispError, match=r"run/adapter is itself an adapter.*disp merge"):
        train(adapter, samples, config, tmp_path / "more")
    assert not (tmp_path / "more").exists()
    train(adapter, samples, replace(config, merge=True, steps=1), tmp_path / "more")


def test_the_floor_of_a_familys_loss_is_not_put_in_twice(model, samples, tmp_path):
    """t is drawn such that the family's own probability, floor + (1 - floor) t, is uniform above min_mask_ratio."""
    drawn = {}
    for floor, least in ((0.0, 0.001), (0.001, 0.001), (0.2, 0.6), (0.5, 0.1)):
        seen = []

        def loss(prefix, clean, ratio, uniforms, seen=seen):
            seen.extend(ratio.tolist())
            return sum(parameter.sum() for parameter in model.parameters()) * 0

        model.ratio_floor, model.noisy_loss = floor, loss
        config = TrainConfig(steps=30, batch_size=6, min_mask_ratio=least)
        train(model, samples, config, tmp_path / f"{floor}-{least}")
        drawn[floor] = [floor + (1 - floor) * t for t in seen]
        assert min(drawn[floor]) >= max(floor, least) - 1e-6 and max(drawn[floor]) <= 1
        assert abs(sum(drawn[floor]) / 180 - (1 + max(floor, least)) / 2) < 0.06
    assert drawn[0.0] == pytest.approx(drawn[0.001], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "about", "message"),
    [
        ({"learning_rate": None}, {"learning_rate": None}, "give --recipe .* or --learning-rate"),
        ({"method": "projector"}, {"projector_names": ()}, "'projector' trains nothing in this model; use 'lora'"),
        ({}, {"is_loaded_in_4bit": True}, "--method lora --keep-adapter"),
        ({"method": "lora"}, {"is_loaded_in_8bit": True}, "--method lora --keep-adapter"),
    ],
)
def test_what_cannot_be_trained_is_said_before_the_folder_is_taken(
    make_model, samples, tmp_path, options, about, message
):
    model, out = make_model(), tmp_path / "out"
    for name, value in about.items():
        setattr(model, name, value)
    with pytest.raises(DispError, match=message):
        train(model, samples, replace(QUICK, **options), out)
    assert not out.exists()
    train(make_model(), samples, QUICK, out)


@pytest.mark.parametrize("options", [{"method": "lora", "merge": False}, {"method": "projector", "train_vision": True}])
def test_what_can_be_trained_passes_the_check(make_model, options):
    model = make_model()
    model.is_loaded_in_4bit, model.projector_names = "merge" in options, ()
    check_training(model, replace(QUICK, **options))


def test_mistakes_are_named(model, samples, tmp_path):
    with pytest.raises(DispError, match="empty"):
        train(model, [], QUICK, tmp_path)
    with pytest.raises(DispError, match="steps must be positive, got 0"):
        TrainConfig(steps=0)
    with pytest.raises(DispError, match="merge the saved adapter afterwards"):
        TrainConfig(method="lora", trainer={"fsdp": "full_shard"})
    with pytest.raises(DispError, match="does not exist"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    with pytest.raises(DispError, match="unknown model type"):
        load_model(tmp_path)


@pytest.mark.slow
def test_two_processes_train_what_one_does_with_batches_twice_as_large(model, samples, tmp_path):
    save_model(model, tmp_path / "model")
    data, images = tmp_path / "data.json", tmp_path / "images"
    images.mkdir()
    for sample in samples:
        sample.images[0].save(images / f"{sample.id}.png")
    # A process that has the row without a picture for itself, and one that has not, wait for each other.
    text = Sample("text", (), (Turn("What is this?", "cat"),))
    save_dataset([text, *(replace(each, images=(images / f"{each.id}.png",)) for each in samples)], data, images)
    launchers = {1: [], 2: ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]}
    for processes, launcher in launchers.items():
        options = {"out": tmp_path / str(processes), "steps": 4, "batch-size": 2 // processes, "learning-rate": 5e-3}
        options |= {"images": images, "device": "cpu"}
        command = [sys.executable, *launcher, "-m", "disp.cli", "train", tmp_path / "model", data]
        command += [word for name, value in options.items() for word in (f"--{name}", value)]
        subprocess.run(
            list(map(str, command)), check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in "12")
    start = load_file(tmp_path / "model" / "model.safetensors")
    assert any(not torch.equal(start[name], one[name]) for name in one)
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
