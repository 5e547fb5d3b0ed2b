"""Which settings a task is answered with: presets, lengths of tasks, and what the command line says."""

import logging

import pytest
from models.tiny import FAMILIES, write_checkpoint

from disp.benchmarks.settings import decode_settings, preset_of, task_names
from disp.decoding.samplers import decode_config
from disp.errors import DispError
from disp.models.loading import load_model

PRESETS = {
    "multiple_choice": {"gen_length": 2, "block_length": 2, "steps": 2},
    "chartqa": {"gen_length": 16, "steps": 16, "stop": ("\n",)},
    "mmmu_val": {"gen_length": 8, "steps": 8},
}
# What lmms-eval hands over for POPE.
POPE = {"max_new_tokens": 128, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False, "until": ["\n\n"]}


@pytest.fixture
def settings(make_model):
    def decided(task, given, *, presets=PRESETS, defaults=None, gen_length=128, longest=512):
        model = make_model(gen_length=gen_length, generation=defaults or {})
        model.generation_presets = presets
        return decode_settings(model, task, given, longest=longest)

    return decided


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A model of each family with its own response length, decoding defaults and presets."""
    # DiffusionGemma's ids are in the section that says the response length of the others.
    changes = {} if request.param == "diffusion_gemma" else {"disp": None}
    folder = tmp_path_factory.mktemp("model") / request.param
    return load_model(write_checkpoint(request.param, folder, ["Describe the picture."], changes), device="cpu")


@pytest.mark.parametrize(
    "task, expected",
    [
        ("mmmu_val", ["mmmu_val", "mmmu", "multiple_choice"]),
        ("scienceqa_img", ["scienceqa_img", "scienceqa", "multiple_choice"]),
        ("pope", ["pope", "yes_no", "multiple_choice"]),
        ("textvqa_val_lite", ["textvqa_val_lite", "textvqa_val", "textvqa", "short_answer"]),
        ("coco2017_cap_val", ["coco2017_cap_val", "coco2017_cap", "caption"]),
        ("disp_clean", ["disp_clean"]),
    ],
)
def test_names_that_a_preset_is_looked_up_by(task, expected):
    assert task_names(task) == expected


def test_the_most_special_preset_is_used():
    assert preset_of("mmmu_val", PRESETS) == PRESETS["mmmu_val"]
    assert preset_of("mmmu_test", PRESETS) == PRESETS["multiple_choice"]
    assert preset_of("chartqa_lite", PRESETS) == PRESETS["chartqa"]
    assert preset_of("textvqa_val", PRESETS) is None


def test_a_preset_outweighs_the_length_of_the_task(settings):
    assert settings("pope", POPE) == decode_config(gen_length=2, steps=2, block_length=2)


def test_the_command_line_outweighs_a_preset(settings):
    chosen = settings("pope", {**POPE, "gen_length": 4, "steps": 4, "temperature": 0.5})
    assert (chosen.gen_length, chosen.steps, chosen.block_length, chosen.temperature) == (4, 4, None, 0.5)


def test_without_a_preset_the_length_is_the_task_s_with_as_many_steps_a_token(settings):
    defaults = {"steps": 64, "block_length": 32, "threshold": 0.9}
    chosen = settings("textvqa_val", {"max_new_tokens": 20}, defaults=defaults)
    assert chosen == decode_config(gen_length=20, steps=10, threshold=0.9)


def test_without_a_length_the_model_s_own_is_used(settings):
    defaults = {"steps": 64, "block_length": 32}
    assert settings("x", {"until": ["\n"]}, defaults=defaults) == decode_config(128, 64, block_length=32)


def test_a_task_that_asks_for_too_much_is_cut_and_told(settings, caplog):
    with caplog.at_level(logging.WARNING):
        assert settings("x", {"max_new_tokens": 4096}).gen_length == 512
    assert "4096" in caplog.text and "512" in caplog.text


def test_greedy_where_the_task_does_not_sample(settings):
    assert settings("x", {"do_sample": False}, defaults={"temperature": 0.2}).temperature == 0
    assert settings("x", {}, defaults={"temperature": 0.2}).temperature == 0.2


def test_what_means_nothing_here_is_ignored_and_what_is_unknown_is_told(settings, caplog):
    with caplog.at_level(logging.WARNING):
        assert settings("x", {"top_p": 0, "num_beams": 3}) == decode_config(128, 128)
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        settings("x", {"step": 4})
    assert "step=4" in caplog.text


def test_lists_become_tuples(settings):
    assert settings("x", {"stop": ["\n", [1, 2]]}).stop == ("\n", (1, 2))


def test_settings_that_do_not_fit_name_the_task(settings):
    with pytest.raises(DispError, match=r"task pope: .*block_length.*--gen_kwargs"):
        settings("pope", {"gen_length": 5, "block_length": 2})


def test_a_length_of_none_is_refused(settings):
    with pytest.raises(DispError, match=r"task pope: gen_length must be at least 1, got 0"):
        settings("pope", {"gen_length": 0})


def test_nothing_of_the_defaults_gets_into_a_preset_but_how_answers_end(settings):
    defaults = {"steps": 64, "block_length": 32, "temperature": 0.2, "threshold": 0.9, "stop": ["<end>"]}
    expected = decode_config(gen_length=2, steps=2, block_length=2, stop=("<end>",))
    assert settings("ai2d", {}, defaults=defaults) == expected
    # A preset may say that itself, or name a sampler that knows of no such thing.
    assert settings("chartqa", {}, defaults=defaults) == decode_config(gen_length=16, steps=16, stop=("\n",))
    other = {"ai2d": {"gen_length": 4, "steps": 4, "sampler": "dream", "algorithm": "entropy"}}
    chosen = settings("ai2d", {}, defaults=defaults, presets=other)
    assert chosen == decode_config(4, 4, sampler="dream", algorithm="entropy")


def test_every_preset_of_a_family_is_as_it_is_published_whatever_the_defaults_are(family):
    for task, preset in family.generation_presets.items():
        chosen = decode_settings(family, task, {}, longest=512)
        ends = {name: value for name, value in family.generation_defaults.items() if name in ("stop", "suffix")}
        assert chosen == decode_config(**{**ends, **preset}), task


@pytest.mark.parametrize("task", ["mmmu_val", "pope", "coco2017_cap_val", "docvqa_val", "no_such_task"])
def test_tasks_of_lmms_eval_are_answered_by_every_family(family, task):
    chosen = decode_settings(family, task, POPE, longest=512)
    assert getattr(chosen, "temperature", 0) == 0
    if preset_of(task, family.generation_presets) is None:
        assert chosen.gen_length == 128


@pytest.mark.parametrize(("task", "length"), [("mmmu_val", 16), ("docvqa_val", 32), ("mmbench_en_dev_lite", 100)])
@pytest.mark.parametrize("variant", ["lavida_llada", "lavida_dream"])
def test_lavida_takes_a_step_a_slot_but_for_captions(variant, task, length, tmp_path):
    model = load_model(write_checkpoint(variant, tmp_path / "m", ["a"], {"disp": None}), device="cpu")
    chosen = decode_settings(model, task, {}, longest=512)
    assert (chosen.gen_length, chosen.most_steps, chosen.schedule) == (length, length, None)
    captions = decode_settings(model, "coco2017_cap_val", {}, longest=512)
    assert (captions.gen_length, captions.most_steps, captions.schedule) == (64, 32, "shift")


@pytest.mark.parametrize("length", [16, 60, 500])
def test_a_task_s_length_changes_steps_as_the_model_says(family, length):
    """A canvas takes as many steps however many canvases there are; elsewhere it is so many steps a slot."""
    usual = family.generation_defaults
    chosen = decode_settings(family, "no_such_task", {"max_new_tokens": length}, longest=512)
    assert chosen.gen_length == length
    if chosen.sampler == "canvas":
        assert chosen.steps == usual["steps"]
    else:
        assert chosen.steps == pytest.approx(usual["steps"] * length / family.gen_length, abs=0.5)
