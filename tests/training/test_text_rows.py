"""Batches that show no picture: every trained parameter has a gradient all the same, so that nobody waits for one."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
import torch
from models.tiny import FAMILIES, write_checkpoint
from scale.processes import ended, forked, rank
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from disp.data.sample import Sample, Turn, queries_of
from disp.errors import DispError
from disp.models.loading import load_model
from disp.models.mmada.model import MMada
from disp.training import examples
from disp.training.config import TrainConfig
from disp.training.examples import Collator, Examples, cached_features
from disp.training.parameters import select_parameters
from disp.training.train import check_training, train

PROMPT = "Describe the picture."
TEXT = Sample("text", (), (Turn(PROMPT, "cat"),))


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    return write_checkpoint(request.param, tmp_path_factory.mktemp(request.param) / "m", [PROMPT, "cat"])


def batch(model, *samples, features=None):
    """The arguments of the model's `forward` for the samples' turns."""
    rows = Examples(queries_of(samples), features, TrainConfig(), model.gen_length, 0.5)
    return Collator(model)([rows[index] for index in range(len(rows))])


def gradients(module, inputs):
    """The loss, and the gradient of each trained parameter, None where it has none."""
    module.zero_grad()
    loss = module(**inputs)
    if loss.requires_grad:
        loss.backward()
    found = {name: value.grad for name, value in module.named_parameters() if value.requires_grad}
    return loss.item(), {name: value if value is None else value.clone() for name, value in found.items()}


@pytest.mark.parametrize(
    "options",
    [{"method": "full"}, {"method": "lora"}, {"method": "projector"}, {"method": "full", "train_vision": True}],
)
def test_what_only_pictures_teach_has_a_gradient_of_zero(checkpoint, picture, options):
    model, config = load_model(checkpoint, device="cpu"), TrainConfig(learning_rate=1e-3, **options)
    learns = not isinstance(model, MMada)  # which has no projector, and no gradient at its codes
    if not learns and (config.method == "projector" or config.train_vision):
        return
    module = select_parameters(model, config)
    shown = Sample("shown", (picture(1),), (Turn(f"<image>\n{PROMPT}", "cat"),))
    for rows, none in (((TEXT,), True), ((shown,), False), ((TEXT, shown), False)):
        inputs = batch(model, *rows)
        expected, alone = gradients(module.eval(), inputs)
        loss, found = gradients(module.train(), inputs)
        assert loss == expected
        assert all(value is not None for value in found.values())
        # Nothing is added to what there is without it.
        for name, value in found.items():
            there = torch.zeros_like(value) if alone[name] is None else alone[name]
            torch.testing.assert_close(value, there, rtol=1e-5, atol=1e-7)
        missing = {name for name, value in alone.items() if value is None}
        assert bool(missing) == (none and learns)


@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_projector_is_trained_on_rows_of_which_some_have_no_picture(make_model, samples, tmp_path, accumulated):
    trainer = {"gradient_accumulation_steps": accumulated}
    config = TrainConfig(steps=4, batch_size=1, method="projector", learning_rate=5e-3, warmup_steps=0, trainer=trainer)
    before = {name: value.clone() for name, value in make_model().named_parameters()}
    for name, rows, learns in (("some", [TEXT, *samples[:2]], True), ("none", [TEXT], False)):
        trained = train(make_model(), rows, config, tmp_path / name)
        changed = {key for key, value in trained.named_parameters() if not torch.equal(value, before[key])}
        assert all("mm_projector" in key for key in changed) and bool(changed) == learns


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("method", ["full", "lora", "projector"])
def test_processes_do_not_wait_for_one_that_shows_no_picture(make_model, samples, tmp_path, method, sharded):
    """The gradients of two processes, of which each shows a picture at every other step, are those of one."""
    config = TrainConfig(method=method)
    model = make_model()
    rows, features = [samples[0], TEXT], cached_features(model, queries_of([samples[0], TEXT]), {})
    shown, text, both = (batch(model, *each, features=features) for each in (rows[:1], rows[1:], rows))
    _, expected = gradients(select_parameters(model, config).train(), both)

    def work():
        number = int(os.environ["RANK"])
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=number, world_size=2)
        own = make_model()
        module = select_parameters(own, config).train()
        if sharded:
            for part in (*own.model.layers, *own.model.vision_tower.layers, module):
                fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
        else:
            module = DistributedDataParallel(module)
        for step in range(4):
            _, found = gradients(module, text if (step + number) % 2 else shown)
            for name, value in found.items():
                value = value.full_tensor() if sharded else value
                torch.testing.assert_close(value, expected[name.removeprefix("module.")], rtol=1e-4, atol=1e-6)
        # Taking the group down waits for the other process at times for ever; each leaves when both are done.
        (tmp_path / f"{number}.done").touch()
        while not (tmp_path / f"{1 - number}.done").exists():
            time.sleep(0.01)
        os._exit(0)

    here = {"GLOO_SOCKET_IFNAME": "lo"}
    ranks = [forked(work, tmp_path / f"{number}.log", {**rank(number, 2), **here}) for number in range(2)]
    codes = [ended(each, 60) for each in ranks]
    assert codes == [0, 0], [(tmp_path / f"{number}.log").read_text() for number in range(2)]


def test_shards_of_a_tower_that_some_processes_would_not_run_are_refused(make_model, samples, tmp_path, monkeypatch):
    config = TrainConfig(steps=1, batch_size=1)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(examples, "FEATURE_CACHE_BYTES", 0)
    with pytest.raises(DispError, match=r"fsdp is not trained on rows without a picture.*ddp\.yaml"):
        train(make_model(), [TEXT, *samples], config, tmp_path)
    with pytest.raises(DispError, match="rows without a picture"):
        train(make_model(), [TEXT, *samples], replace(config, trainer={"fsdp": "full_shard"}), tmp_path / "other")


def test_an_image_tokenizer_without_gradients_is_not_trained(tmp_path):
    model = load_model(write_checkpoint("mmada", tmp_path / "m", [PROMPT]), device="cpu")
    with pytest.raises(DispError, match="tower of MMada cannot be trained; leave train_vision out"):
        check_training(model, TrainConfig(learning_rate=1e-3, train_vision=True))
