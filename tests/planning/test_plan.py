"""The plan as a whole."""

import json
from dataclasses import replace

import pytest
from models.tiny import write_checkpoint
from references.planning import LLADA_8B, MMADA

from disp.commands.scoring import PlannedRewriting, Rewriting
from disp.commands.training import PlannedTraining
from disp.data.sample import queries_of
from disp.errors import DispError
from disp.models.llada_v.published import SYSTEM
from disp.models.loading import load_model
from disp.models.parts.llava import CHAT_TEMPLATE
from disp.planning.checkpoints import sizes_of
from disp.planning.plan import PlanSettings, default_decode, make_plan
from disp.purification.config import PurifyConfig
from disp.training.config import TrainConfig


def test_the_prefix_is_as_long_as_the_model_makes_it(tiny_model, tiny_folder, data, settings):

    plan = make_plan(tiny_folder, data, settings)
    assert plan.measured_text and plan.counted
    assert plan.prefix == pytest.approx(tiny_model.encode(queries_of(data.samples)).embeds.shape[1], abs=3)
    assert plan.visual_tokens == (9, 9)
    assert plan.parameters == sum(parameter.numel() for parameter in tiny_model.parameters())
    text = plan.to_text()
    for part in ("saliency", "decoding", "training", "audit", "purify", "evaluate", "11 samples", "14 answers"):
        assert part in text


@pytest.mark.parametrize("system", [None, "Say little."])
def test_the_prefix_has_a_system_message(tmp_path, data, settings, system):
    """LLaDA-V's own one, where the chat has none."""

    texts = [turn.prompt for sample in data.samples for turn in sample.turns]
    folder = write_checkpoint("llada_v", tmp_path / "llada_v", [*texts, SYSTEM])
    assert not make_plan(folder, data, settings).measured_text  # the tokenizer came without a chat template
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    samples = tuple(replace(sample, system=system) for sample in data.samples)
    plan = make_plan(folder, replace(data, samples=samples), settings)
    real = load_model(folder, device="cpu").encode(queries_of(samples)).embeds.shape[1]
    assert plan.measured_text and plan.prefix == pytest.approx(real, abs=3)


def test_a_config_alone_is_enough(data):
    plan = make_plan(LLADA_8B, data, PlanSettings(purify=PurifyConfig(batch_size=1, decode=default_decode(LLADA_8B))))
    assert not plan.counted and not plan.measured_text
    assert plan.memory["decoding"].weights == 2 * plan.parameters
    assert "by its config" in plan.to_text() and "guessed" in plan.to_text()
    assert default_decode(LLADA_8B).gen_length == 128


def test_longer_answers_take_more_passes_and_memory(data):
    usual, longer = (make_plan(LLADA_8B, data, PlanSettings(gen_length=length)) for length in (None, 512))
    assert default_decode(LLADA_8B, 512).gen_length == 512
    for step in ("saliency", "decoding", "training"):
        assert longer.memory[step].activations > usual.memory[step].activations
    for run in ("audit", "purify", "evaluate"):
        assert longer.passes[run].forward > usual.passes[run].forward
    with pytest.raises(DispError, match="gen_length must be at least 1"):
        PlanSettings(gen_length=0)


def test_a_quantized_model_is_planned_with_adapters():
    assert PlannedTraining().config(quantized=True).method == "lora"
    assert PlannedTraining().config(quantized=False).method == TrainConfig().method
    assert PlannedTraining(recipe="disp").config(quantized=True).method == "projector"  # which a plan then refuses


def test_a_plan_has_the_probes_of_the_run(tiny_model):
    for mode in ("selective", "all", "random"):
        planned, run = PlannedRewriting(mode=mode).config(), Rewriting(mode=mode).config(tiny_model, 0, 32)
        assert planned.scoring.saliency.probes == run.scoring.saliency.probes


def test_a_method_that_trains_nothing_is_refused(data):
    """Nothing stands between MMaDA's image tokens and its language model."""
    settings = PlanSettings(train=TrainConfig(method="projector"))
    with pytest.raises(DispError, match="method 'projector' trains nothing in this model; use 'lora' or 'full'"):
        make_plan(MMADA, data, settings)
    plan = make_plan(MMADA, data, PlanSettings(train=TrainConfig(method="lora")))
    assert plan.trained == sizes_of(MMADA).weights.ends * 16


def test_an_adapter_is_planned_as_its_base(tmp_path, tiny_folder, data, settings):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_folder)}))
    assert make_plan(tmp_path, data, settings).parameters == make_plan(tiny_folder, data, settings).parameters


def test_of_a_hub_model_only_the_small_files_are_fetched(monkeypatch, tiny_folder, data, settings):
    asked_for = {}

    def snapshot_download(name, allow_patterns):
        asked_for[name] = allow_patterns
        return str(tiny_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    make_plan("somebody/model", data, settings)
    assert not any("safetensors" in pattern for pattern in asked_for["somebody/model"])


@pytest.mark.parametrize(
    "given",
    [
        {"dtype": "int8"},
        {"bits": 3},
        {"bits": 4},
        {"bits": 4, "train": TrainConfig(method="projector")},
        {"evaluation_batch_size": 0},
    ],
)
def test_settings_that_make_no_sense(given):
    with pytest.raises(DispError):
        PlanSettings(**given)
