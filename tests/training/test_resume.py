"""Fine-tuning that is stopped: it ends as an undisturbed run, and takes nothing of another one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import TrainerState

from disp.commands.training import Recovery, Training
from disp.data.sample import Sample
from disp.errors import DispError
from disp.models.fingerprint import fingerprint
from disp.models.loading import load_model
from disp.models.saving import save_model
from disp.training.config import TrainConfig
from disp.training.train import train

QUICK = TrainConfig(steps=4, batch_size=4, learning_rate=5e-3, warmup_steps=1)


def _changed(before, model):
    after = dict(model.named_parameters())
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def _weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


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
    done = []
    fresh = make_model(initializer_range=0.05, gen_length=8)
    # How often it is saved makes no other run of it.
    resumed = train(fresh, samples, replace(config, save_every=3), tmp_path / "killed", progress=done.append)
    assert done == [4, 1, 1]
    for name, value in _weights(whole).items():
        torch.testing.assert_close(_weights(resumed)[name], value, rtol=0, atol=1e-6)


def test_without_a_number_a_run_goes_on_from_the_last_tenth_and_leaves_no_checkpoint(make_model, samples, tmp_path):
    class Killed(Exception):
        pass

    def kill_after_fifteen(count):
        steps.append(count)
        if len(steps) == 15:
            raise Killed

    config, steps, done = replace(QUICK, steps=20, save_every=None), [], []
    with pytest.raises(Killed):
        train(make_model(), samples, config, tmp_path, progress=kill_after_fifteen)
    train(make_model(), samples, config, tmp_path, progress=done.append)
    assert done == [14, 1, 1, 1, 1, 1, 1]
    assert not (tmp_path / "checkpoints").exists()


def test_commands_write_checkpoints():
    for options in (Training(), Training(recipe="disp"), Recovery(), Recovery(recipe="disp")):
        assert options.config(0).save_every is None
    assert Training(save_every=0).config(0).save_every == 0
    assert Training(recipe="disp", save_every=5).config(0).save_every == 5


def test_as_many_steps_on_more_devices_are_another_run(make_model, samples, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def kill(count):
        raise Killed

    with pytest.raises(Killed):
        train(make_model(), samples, replace(QUICK, save_every=1), tmp_path, progress=kill)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DispError, match=r"differs in devices \(1 there, 2 now\); choose"):
        train(make_model(), samples, replace(QUICK, save_every=1), tmp_path)


def test_a_trained_model_is_the_same_one_in_memory_and_in_its_folder(make_model, samples, tmp_path):
    config = replace(QUICK, steps=2)
    first = fingerprint(train(make_model(), samples, config, tmp_path))
    again = fingerprint(train(make_model(), samples, config, tmp_path))
    assert first == again == fingerprint(load_model(tmp_path, device="cpu"))


def test_a_folder_takes_no_other_run(make_model, samples, tmp_path):
    config = replace(QUICK, save_every=2)
    first = train(make_model(), samples, config, tmp_path)
    others = [
        ("weights", make_model(seed=1), samples, config),
        ("queries_sha256", make_model(), [replace(samples[0], turns=samples[1].turns), *samples[1:]], config),
        ("pictures_sha256", make_model(), [replace(samples[0], images=samples[1].images), *samples[1:]], config),
        (r"config.seed \(0 there, 1 now\)", make_model(), samples, replace(config, seed=1)),
    ]
    for named, model, rows, settings in others:
        with pytest.raises(DispError, match=f"holds a fine-tuning run that differs in {named}; choose"):
            train(model, rows, settings, tmp_path)
    again = train(make_model(), samples, config, tmp_path)
    assert not _changed(_weights(first), again)


@pytest.mark.parametrize("left", [None, "", '{"global_step": 1'], ids=["no state", "empty state", "half a state"])
def test_a_run_that_was_killed_while_it_saved_goes_on_from_the_checkpoint_before(
    make_model, samples, tmp_path, monkeypatch, left
):
    # By name, the ninth checkpoint comes after the tenth.
    config = replace(QUICK, steps=11, save_every=1, trainer={"save_total_limit": 3})
    whole = train(make_model(), samples, config, tmp_path / "whole")
    steps = []

    class Killed(Exception):
        pass

    def killed(state, path):
        if state.global_step == 11:
            if left is not None:
                Path(path).write_text(left)
            raise Killed
        save(state, path)

    save = TrainerState.save_to_json
    with monkeypatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", killed)
        with pytest.raises(Killed):
            train(make_model(), samples, config, tmp_path / "killed")
    checkpoints = tmp_path / "killed" / "checkpoints"
    assert (checkpoints / "checkpoint-11" / "model.safetensors").is_file()
    resumed = train(make_model(), samples, config, tmp_path / "killed", progress=steps.append)
    assert steps == [10, 1]
    for name, value in _weights(whole).items():
        torch.testing.assert_close(_weights(resumed)[name], value, rtol=0, atol=1e-6)


def test_a_run_that_was_killed_while_it_saved_its_first_checkpoint_starts_anew(make_model, samples, tmp_path):
    config, steps = replace(QUICK, save_every=2), []
    torn = tmp_path / "checkpoints" / "checkpoint-3"
    torn.mkdir(parents=True)
    train(make_model(), samples, config, tmp_path, progress=steps.append)
    assert len(steps) == 4 and not torn.exists()


@pytest.mark.parametrize("save_every", [0, 2])
@pytest.mark.parametrize(
    "options", [{}, {"method": "projector"}, {"method": "lora"}, {"method": "lora", "merge": False}]
)
def test_a_finished_run_is_not_trained_further(make_model, samples, tmp_path, queries, options, save_every):
    config, steps = replace(QUICK, save_every=save_every, **options), []
    save_model(make_model(initializer_range=0.05, gen_length=8), tmp_path / "base")
    first = train(load_model(tmp_path / "base"), samples, config, tmp_path / "run")
    written = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    model = load_model(tmp_path / "base")
    again = train(model, samples, config, tmp_path / "run", progress=steps.append)
    assert sum(steps) == config.steps
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == written
    # The model that was given has changed, as after a run that was not finished.
    assert again is model and not again.training
    response = torch.full((len(queries), 8), first.mask_token_id)
    with torch.no_grad():
        ended, now, start = (
            each.denoise(each.encode(queries), response) for each in (first, again, load_model(tmp_path / "base"))
        )
    assert torch.equal(now, ended) and not torch.allclose(now, start, atol=1e-3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_that_was_killed_after_its_last_step_takes_no_other(make_model, samples, tmp_path, method):
    config, steps = replace(QUICK, save_every=2, method=method), []
    save_model(make_model(initializer_range=0.05, gen_length=8), tmp_path / "base")
    first = train(load_model(tmp_path / "base"), samples, config, tmp_path / "run")
    for name in ("train.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    again = train(load_model(tmp_path / "base"), samples, config, tmp_path / "run", progress=steps.append)
    assert steps == [4] and json.loads((tmp_path / "run" / "train.json").read_text())["global_step"] == 4
    assert not _changed(_weights(first), again)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_run_goes_on_with_its_pictures_in_another_folder_and_not_with_others_of_their_names(
    make_model, samples, tmp_path
):
    def saved(folder: str, number: int) -> list[Sample]:
        """The samples with pictures that lie in a folder, without compression; the first has a pixel of its own."""
        (tmp_path / folder).mkdir()
        rows = []
        for index, sample in enumerate(samples):
            image = sample.images[0].copy()
            if index == 0:
                image.putpixel((12, 12), (number, 0, 0))
            image.save(tmp_path / folder / f"{index}.bmp")
            rows.append(replace(sample, images=(tmp_path / folder / f"{index}.bmp",)))
        return rows

    first = train(make_model(), saved("one", 1), QUICK, tmp_path / "run")
    assert not _changed(_weights(first), train(make_model(), saved("copied", 1), QUICK, tmp_path / "run"))
    with pytest.raises(DispError, match="differs in pictures_sha256; choose"):
        train(make_model(), saved("other", 2), QUICK, tmp_path / "run")
    gone = replace(samples[0], images=(tmp_path / "nowhere.png",))
    with pytest.raises(DispError, match=r"nowhere.png: cannot be read .*drop the row"):
        train(make_model(), [gone], QUICK, tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_a_sharded_model_gets_checkpoints_only_where_they_are_asked_for(make_model, samples, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("transformers.Trainer._save_checkpoint", lambda self, *given: saved.append(given))
    config = replace(QUICK, steps=10, save_every=None)
    train(make_model(), samples, config, tmp_path / "whole")
    assert len(saved) == 10
    monkeypatch.setattr("disp.training.train.SHARDING", ("SHARDED_HERE",))
    monkeypatch.setenv("SHARDED_HERE", "true")
    train(make_model(), samples, config, tmp_path / "sharded")
    assert len(saved) == 10
