"""Fine-tuning of a model in half precision: weights in float32 meanwhile, and everything as it was afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models.tiny import FAMILIES, write_checkpoint
from safetensors.torch import load_file

from disp.data.sample import Sample, Turn, queries_of
from disp.errors import DispError
from disp.models.interface import MDLM
from disp.models.loading import load_model
from disp.models.mmada.model import MMada
from disp.models.saving import save_model
from disp.training.config import TrainConfig
from disp.training.examples import Collator, Examples
from disp.training.parameters import select_parameters, trained_in_float32
from disp.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
ANSWERS = ("cat", "dog", "tree", "boat", "apple", "two")
PROMPT = "<image>\nDescribe the picture."
# Small steps, all of one size: a published recipe's.
SMALL = TrainConfig(
    steps=25, batch_size=6, learning_rate=1e-5, warmup_steps=0, trainer={"lr_scheduler_type": "constant"}
)


@pytest.fixture(scope="module")
def samples(picture) -> list[Sample]:
    return [Sample(f"s{n}", (picture(n),), (Turn(PROMPT, answer),)) for n, answer in enumerate(ANSWERS)]


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory) -> Path:
    """A small model in bfloat16, with weights of ordinary size."""
    folder = tmp_path_factory.mktemp("model")
    save_model(make_model(initializer_range=0.02, gen_length=8).bfloat16(), folder)
    return folder


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if number else name for number, name in enumerate(FAMILIES)],
)
def source(request, tmp_path_factory) -> Path:
    return write_checkpoint(request.param, tmp_path_factory.mktemp(request.param) / request.param, [PROMPT, *ANSWERS])


def weights(model: MDLM) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def share(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The share of the trained matrices' weights that are the same, bit for bit, in bfloat16."""
    same = torch.cat([(one[name].bfloat16() == other[name].bfloat16()).flatten() for name in one if one[name].ndim > 1])
    return same.float().mean().item()


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("full", "model.layers."),
        pytest.param("projector", "mm_projector", marks=pytest.mark.slow),
        # Adapters are in float32 whatever the rest is.
        pytest.param("lora", "mm_projector", marks=pytest.mark.slow),
    ],
)
def test_small_steps_are_not_lost(folder, samples, tmp_path, method, part):
    """They end where those of the model in float32 do, rounded once."""

    def run(name: str, dtype: str, **trainer) -> dict[str, torch.Tensor]:
        config = replace(SMALL, method=method, trainer={**SMALL.trainer, **trainer})
        after = weights(train(load_model(folder, device="cpu", dtype=dtype), samples, config, tmp_path / name))
        return {name: value for name, value in after.items() if part in name}

    start = {name: value for name, value in weights(load_model(folder, dtype="bfloat16")).items() if part in name}
    mixed, exact, plain = run("mixed", "bfloat16"), run("exact", "float32"), run("plain", "bfloat16", bf16=False)
    assert share(exact, start) < 0.2 and share(mixed, exact) > 0.9
    # Rounded at each step, most weights stay where they were.
    assert share(plain, start) > 0.8 and share(plain, exact) < 0.2


def test_what_is_saved_is_as_it_was_loaded(folder, samples, tmp_path):
    model = load_model(folder, device="cpu", dtype="bfloat16")
    trained = train(model, samples, replace(SMALL, steps=2, save_every=1), tmp_path)
    assert {value.dtype for value in trained.parameters()} == {torch.bfloat16}
    assert "forward" not in trained.__dict__ and not any(value.grad is not None for value in trained.parameters())
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in weights(trained).items())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    # Frozen weights stay in bfloat16 there, too.
    checkpoint = load_file(tmp_path / "checkpoints" / "checkpoint-2" / "model.safetensors")
    for name, value in checkpoint.items():
        assert value.dtype == (torch.bfloat16 if "vision_tower" in name else torch.float32), name
        assert torch.equal(value.bfloat16(), saved[name])


@pytest.mark.parametrize("method", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_a_killed_run_resumes_in_float32(folder, samples, tmp_path, method):
    config = replace(SMALL, steps=6, save_every=2, method=method)

    class Killed(Exception):
        pass

    steps: list[int] = []

    def kill_after_five(count: int) -> None:
        steps.append(count)
        if len(steps) == 5:
            raise Killed

    killed = load_model(folder, device="cpu", dtype="bfloat16")
    with pytest.raises(Killed):
        train(killed, samples, config, tmp_path / "killed", progress=kill_after_five)
    parts = {"full": "", "lora": "mm_projector"}
    chosen = [value for name, value in killed.named_parameters() if parts[method] in name and "lora_" not in name]
    assert {value.dtype for value in chosen} == {torch.bfloat16}
    whole = train(load_model(folder, device="cpu", dtype="bfloat16"), samples, config, tmp_path / "whole")
    resumed = train(load_model(folder, device="cpu", dtype="bfloat16"), samples, config, tmp_path / "killed")
    # The last step of both is from the same weights in float32, down to the last bit.
    assert all(torch.equal(weights(resumed)[name], value) for name, value in weights(whole).items())
    ends = [load_file(file) for file in sorted(tmp_path.glob("*/checkpoints/checkpoint-6/*model.safetensors"))]
    assert len(ends) == 2 and all(torch.equal(ends[0][name], value) for name, value in ends[1].items())


def test_precision_can_be_chosen(folder, samples, tmp_path, monkeypatch):
    """What `trainer` says goes, the second time that a model is trained too, and a model in float32 stays in it."""
    seen = {}

    def loss(prefix, clean, ratio, uniforms):
        seen["autocast"], seen["embeds"] = torch.is_autocast_enabled("cpu"), prefix.embeds.dtype
        return sum(value.float().sum() for value in model.parameters()) * 0

    for dtype, trainer, autocast, embeds in (
        ("bfloat16", {}, True, torch.float32),
        ("bfloat16", {"bf16": False}, False, torch.bfloat16),
        ("float32", {}, False, torch.float32),
        ("float32", {"bf16": True}, True, torch.float32),
    ):
        model = load_model(folder, device="cpu", dtype=dtype)
        monkeypatch.setattr(model, "noisy_loss", loss)
        for time in ("once", "again"):
            train(model, samples, replace(SMALL, steps=1, trainer=trainer), tmp_path / f"{dtype}-{trainer}-{time}")
            assert seen == {"autocast": autocast, "embeds": embeds}, time
            seen.clear()


# --- the published families -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["features", "pictures"])
@pytest.mark.parametrize("method", ["full", "projector", "lora"])
def test_every_family_trains_in_half_precision(source, samples, tmp_path, monkeypatch, method, cached):
    if not cached:
        monkeypatch.setattr("disp.training.examples.FEATURE_CACHE_BYTES", 0)
    model = load_model(source, device="cpu", dtype="bfloat16")
    config = TrainConfig(
        steps=2, batch_size=3, learning_rate=1e-3, method=method, warmup_steps=0, gradient_checkpointing=not cached
    )
    before = {name: value.dtype for name, value in model.named_parameters()}
    start = weights(model)
    if method == "projector" and not model.projector_names:
        with pytest.raises(DispError, match="trains nothing"):
            train(model, samples, config, tmp_path)
        return
    trained = train(model, samples, config, tmp_path)
    after = weights(trained)
    assert {name: value.dtype for name, value in after.items()} == before
    moved = {name for name, value in after.items() if not torch.equal(value, start[name])}
    assert moved and all(value.isfinite().all() for value in after.values())
    assert not any(part in name for part in model.vision_names for name in moved)
    parts = [*(model.projector_names), *(() if method == "projector" else ("layers.",))]
    assert all(any(part in name for name in moved) for part in parts)
    published, saved = load_file(source / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert saved.keys() == published.keys()
    assert {value.dtype for value in saved.values()} <= {torch.bfloat16, torch.float32}
    assert {name: value.dtype for name, value in trained.official_state_dict().items()} == {
        name: value.dtype for name, value in saved.items()
    }
    if method == "lora":
        adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        for name, value in adapter.items():
            assert value.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_every_family_takes_a_step_in_float16(source, samples, method):
    """What the library does on a GPU only, without its scaling of the loss."""
    model = load_model(source, device="cpu", dtype="float16")
    queries = queries_of(samples)[:3]
    features = {(query.sample_id, len(query.images)): model.image_features(query.images) for query in queries}
    examples = Examples(queries, features, TrainConfig(), model.gen_length, 0.5)
    module = select_parameters(model, TrainConfig(method=method))
    with trained_in_float32(module):
        with torch.autocast("cpu", torch.float16):
            loss = module(**Collator(model)([examples[index] for index in range(3)]))
        loss.backward()
        gradients = [value.grad for value in module.parameters() if value.grad is not None]
        assert gradients and {gradient.dtype for gradient in gradients} == {torch.float32}
    assert loss.isfinite()


def test_codes_do_not_depend_on_the_precision_of_training(samples, tmp_path):
    """MMaDA's image tokenizer rounds to signs: in half precision it would see other pictures."""
    source = write_checkpoint("mmada", tmp_path / "mmada", [PROMPT])
    model = load_model(source, device="cpu")
    assert isinstance(model, MMada)
    pixels = model.pixels([sample.images[0] for sample in samples])
    with torch.autocast("cpu", torch.bfloat16):
        codes = model.codes(pixels)
    assert torch.equal(codes, model.codes(pixels))
