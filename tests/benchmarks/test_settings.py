"""Which settings a task is answered with: presets, lengths of tasks, and what the command line says."""

import logging

import pytest

from disp.benchmarks.settings import decode_settings, preset_of, task_names
from disp.decoding.samplers import decode_config
from disp.errors import DispError

PRESETS = {
    "multiple_choice": {"gen_length": 2, "block_length": 2, "steps": 2},
    "chartqa": {"gen_length": 16, "steps": 16, "stop": ("\n",)},
    "mmmu_val": {"gen_length": 8, "steps": 8},
}
# What lmms-eval hands over for POPE.
POPE = {"max_new_tokens": 128, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False, "until": ["\n\n"]}


def settings(task, given, *, presets=PRESETS, defaults=None, gen_length=128, longest=512):
    return decode_settings(
        task, given, gen_length=gen_length, defaults=defaults or {}, presets=presets, longest=longest
    )


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


def test_a_preset_outweighs_the_length_of_the_task():
    assert settings("pope", POPE) == decode_config(gen_length=2, steps=2, block_length=2)


def test_the_command_line_outweighs_a_preset():
    chosen = settings("pope", {**POPE, "gen_length": 4, "steps": 4, "temperature": 0.5})
    assert (chosen.gen_length, chosen.steps, chosen.block_length, chosen.temperature) == (4, 4, None, 0.5)


def test_without_a_preset_the_length_is_the_task_s_with_as_many_steps_a_token():
    defaults = {"steps": 64, "block_length": 32, "threshold": 0.9}
    chosen = settings("textvqa_val", {"max_new_tokens": 20}, defaults=defaults)
    assert chosen == decode_config(gen_length=20, steps=10, threshold=0.9)


def test_without_a_length_the_model_s_own_is_used():
    defaults = {"steps": 64, "block_length": 32}
    assert settings("x", {"until": ["\n"]}, defaults=defaults) == decode_config(128, 64, block_length=32)


def test_a_task_that_asks_for_too_much_is_cut_and_told(caplog):
    with caplog.at_level(logging.WARNING):
        assert settings("x", {"max_new_tokens": 4096}).gen_length == 512
    assert "4096" in caplog.text and "512" in caplog.text


def test_greedy_where_the_task_does_not_sample():
    assert settings("x", {"do_sample": False}, defaults={"temperature": 0.2}).temperature == 0
    assert settings("x", {}, defaults={"temperature": 0.2}).temperature == 0.2


def test_what_means_nothing_here_is_ignored_and_what_is_unknown_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        assert settings("x", {"top_p": 0, "num_beams": 3}) == decode_config(128, 128)
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        settings("x", {"step": 4})
    assert "step=4" in caplog.text


def test_lists_become_tuples():
    assert settings("x", {"stop": ["\n", [1, 2]]}).stop == ("\n", (1, 2))


def test_settings_that_do_not_fit_name_the_task():
    with pytest.raises(DispError, match=r"task pope: .*block_length.*--gen_kwargs"):
        settings("pope", {"gen_length": 5, "block_length": 2})
