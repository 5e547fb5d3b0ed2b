"""Published settings as presets, and how they meet what the user asks for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from disp.cli import app
from disp.data.scene_dataset import write_scenes
from disp.defence import defend as defence
from disp.errors import DispError
from disp.planning import plan
from disp.training import train as training
from disp.training.config import TrainConfig
from disp.training.recipes import recipe, recipes


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_a_valid_configuration(name):
    config = recipe(name, steps=200)
    assert isinstance(config, TrainConfig)
    assert config.steps == 200 and config.warmup_steps == 6
    assert config.merge and config.lora_rank == TrainConfig.lora_rank


def test_published_rates():
    """Learning rates and batch sizes of the published training scripts."""
    rates = {name: (recipe(name).method, recipe(name).learning_rate) for name in recipes()}
    assert rates == {
        "disp": ("projector", 1e-4),
        "disp-implant": ("projector", 1e-4),
        "llada-v-projector": ("projector", 1e-3),
        "llada-v": ("full", 1e-5),
        "lavida-projector": ("projector", 1e-3),
        "lavida": ("full", 2e-5),
        "mmada": ("full", 5e-5),
        "dimple-projector": ("projector", 1e-3),
        "dimple": ("full", 5e-6),
    }
    assert recipe("dimple").max_grad_norm == 0.01
    assert recipe("mmada").weight_decay == 0.01
    assert recipe("lavida").trainer["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}


def test_the_authors_recipes_count_in_epochs():
    """32 rows a step, 3% warm-up; 1,000 rows for 20 epochs to implant, for 4 to recover."""
    for name, epochs, steps in (("disp", 4, 125), ("disp-implant", 20, 625)):
        for devices in (1, 8):
            config = recipe(name, devices=devices)
            assert config.epochs == epochs
            in_steps = config.for_turns(1000, devices)
            assert (in_steps.steps, in_steps.epochs) == (steps, None)
            assert in_steps.warmup_steps == round(0.03 * steps)
        assert recipe(name, steps=40).epochs is None and recipe(name, steps=40).steps == 40
    assert recipe("disp", epochs=1.5).for_turns(320).steps == 15
    assert TrainConfig(steps=7).for_turns(1000) == TrainConfig(steps=7)
    with pytest.raises(DispError, match="epochs must be positive"):
        TrainConfig(epochs=0)
    with pytest.raises(DispError, match="warmup_share must be in"):
        TrainConfig(warmup_share=1.5)


@pytest.mark.parametrize(
    ("devices", "given", "passes"),
    [(1, {}, 64), (8, {}, 8), (1, {"batch_size": 4}, 16), (4, {"batch_size": 4}, 4), (8, {"batch_size": 32}, 1)],
)
def test_a_step_stays_as_large_as_published(devices, given, passes):
    config = recipe("llada-v", devices=devices, **given)
    assert config.trainer["gradient_accumulation_steps"] == passes
    assert config.batch_size == given.get("batch_size", 1)


def test_what_is_given_wins_and_none_does_not():
    config = recipe(
        "lavida",
        learning_rate=3e-4,
        method="lora",
        warmup_steps=2,
        batch_size=None,
        trainer={"gradient_accumulation_steps": 3},
    )
    assert (config.learning_rate, config.method, config.warmup_steps, config.batch_size) == (3e-4, "lora", 2, 1)
    assert config.trainer["gradient_accumulation_steps"] == 3
    assert config.trainer["lr_scheduler_type"] == "cosine_with_min_lr"
    assert "gradient_accumulation_steps" not in recipes()["lavida"].settings["trainer"]


def test_mistakes_are_named():
    with pytest.raises(DispError, match=r"unknown recipe 'lavidda'.*dimple.*mmada.*Did you mean 'lavida'\?"):
        recipe("lavidda")
    with pytest.raises(DispError, match="batch_size must be positive, got 0"):
        recipe("llada-v", batch_size=0)


class Stopped(Exception):
    """Raised where a command would begin its work."""


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A function that gives the training configuration which a command with these options comes to.

    Commands write checkpoints as often as they think right, which is none of a recipe.
    """
    write_scenes(tmp_path / "data", 2, seed=0)
    seen = []

    def stop(config: TrainConfig) -> None:
        assert config.save_every is None
        seen.append(replace(config, save_every=TrainConfig.save_every))
        raise Stopped

    monkeypatch.setattr(training, "train", lambda model, samples, config, out, **_: stop(config))
    monkeypatch.setattr(defence, "defend", lambda model, dataset, config, out, **_: stop(config.training))
    monkeypatch.setattr(plan, "make_plan", lambda model, dataset, config: stop(config.train))
    where = {verb: ["--out", tmp_path / "out", "--device", "cpu"] for verb in ("train", "defend")}

    def run(verb: str, *options: str) -> TrainConfig:
        arguments = [verb, "builtin", tmp_path / "data", *where.get(verb, ()), *options]
        with pytest.raises(Stopped):
            app([str(each) for each in arguments], print_error=False, exit_on_error=False)
        return seen.pop()

    return run


@pytest.fixture
def trained(settings):
    return partial(settings, "train")


def test_the_command_line(trained, monkeypatch):
    assert trained() == TrainConfig()
    assert trained("--accumulate", "2").trainer == {"gradient_accumulation_steps": 2}
    assert trained("--recipe", "llada-v", "--steps", "300") == recipe("llada-v", steps=300)
    config = trained("--recipe", "llada-v", "--method", "projector", "--learning-rate", "1e-4", "--batch-size", "8")
    assert config == recipe("llada-v", method="projector", learning_rate=1e-4, batch_size=8)
    assert not trained("--recipe", "llada-v", "--no-gradient-checkpointing").gradient_checkpointing
    assert trained("--epochs", "3").steps == 1  # two turns, 32 a step
    assert trained("--epochs", "3", "--batch-size", "1").steps == 6
    with pytest.raises(DispError, match="either --steps or --epochs"):
        trained("--epochs", "3", "--steps", "5")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert trained("--recipe", "llada-v").trainer["gradient_accumulation_steps"] == 16
    with pytest.raises(DispError, match="Did you mean 'llada-v'"):
        trained("--recipe", "llada_v")


# Of four processes the first trains alone in `disp defend`, so that it accumulates all rows of a step itself.
@pytest.mark.parametrize(("verb", "accumulated"), [("defend", 128), ("plan", 32)])
def test_the_other_commands_with_a_recipe(settings, verb, accumulated, monkeypatch):
    assert settings(verb) == TrainConfig()
    given = ["--steps", "7", "--train-batch-size", "4", "--method", "lora"]
    assert settings(verb, *given) == TrainConfig(steps=7, batch_size=4, method="lora")
    assert settings(verb, "--recipe", "dimple") == recipe("dimple")
    given = ["--recipe", "llada-v", *given]
    assert settings(verb, *given) == recipe("llada-v", steps=7, batch_size=4, method="lora")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert settings(verb, "--recipe", "lavida").trainer["gradient_accumulation_steps"] == accumulated
    with pytest.raises(DispError, match="Did you mean 'llada-v'"):
        settings(verb, "--recipe", "llada_v")


def test_what_only_one_command_takes(settings):
    given = ["--learning-rate", "1e-4", "--min-mask-ratio", "0.25", "--seed", "3"]
    expected = {"learning_rate": 1e-4, "min_mask_ratio": 0.25, "seed": 3}
    assert settings("defend", *given) == TrainConfig(**expected)
    assert settings("defend", "--recipe", "mmada", *given) == recipe("mmada", **expected)
    assert settings("plan", "--gradient-checkpointing").gradient_checkpointing
    assert not settings("plan", "--recipe", "mmada", "--no-gradient-checkpointing").gradient_checkpointing


def test_a_recipe_trains(tmp_path):
    """The schedule with a floor and accumulation are arguments that the library takes."""
    data = tmp_path / "data"
    write_scenes(data, 2, seed=0)
    options = ["--recipe", "lavida", "--steps", "2", "--batch-size", "2", "--accumulate", "2", "--device", "cpu"]
    arguments = ["train", "builtin", data, "--out", tmp_path / "out", *options]
    app([str(each) for each in arguments], print_error=False, exit_on_error=False, result_action="return_value")
    assert (tmp_path / "out" / "model.safetensors").is_file()
