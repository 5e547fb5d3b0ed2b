"""Profiles change what they say, for every sampler, and `exact` gives the answers that no profile gives."""

from __future__ import annotations

from dataclasses import fields

import pytest

from disp.decoding.generate import generate
from disp.decoding.profiles import ONCE, PROFILES, profiled
from disp.decoding.samplers import decode_config, own_settings
from disp.errors import DispError


def changed(before, name, keep=()):
    after = profiled(before, name, keep)
    return {
        each.name: getattr(after, each.name)
        for each in fields(after)
        if getattr(after, each.name) != getattr(before, each.name)
    }


EXACT = {"open_slots": True, "end_early": True}


@pytest.mark.parametrize("sampler", ["llada", "dream", "dim"])
def test_exact_computes_less_and_nothing_else(sampler):
    assert changed(decode_config(24, 24, sampler=sampler), "exact") == EXACT


def test_faster_profiles_of_each_sampler():
    fast = {**EXACT, "refresh": 8, "gap": 5.0}
    assert changed(decode_config(24, 24), "fast") == {**fast, "steps": 12, "threshold": 0.95}
    assert changed(decode_config(24, 24), "fastest") == {**fast, "refresh": ONCE, "steps": 6, "threshold": 0.9}
    # Blocks keep equally many steps each, and a step that a slot is not left for is none to begin with.
    blocks = decode_config(24, 48, block_length=8, threshold=0.5)
    assert changed(blocks, "fast") == {**fast, "steps": 12}
    assert changed(decode_config(24, 9, block_length=8), "fastest")["steps"] == 3
    dim = decode_config(24, 24, sampler="dim")
    assert changed(dim, "fast") == {**fast, "steps": 12, "confidence_threshold": 0.95}
    dream = decode_config(24, 24, sampler="dream", step_ratio=0.5)
    found = profiled(dream, "fast")
    assert dream.most_steps == 12 and found.most_steps == 6
    assert changed(dream, "fast") == {**fast, "steps": 12, "step_ratio": 0.25}


def test_what_was_given_and_the_models_own_cache_stay():
    assert changed(decode_config(24, 24), "fast", keep=("steps", "threshold")) == {**EXACT, "refresh": 8, "gap": 5.0}
    cached = decode_config(24, 24, sampler="dim", prefix_cache=True)
    assert "refresh" not in changed(cached, "fast") and profiled(cached, "fastest").prefix_cache


def test_unknown_profiles_and_models_without_a_mask_token():
    with pytest.raises(DispError, match=r"unknown profile 'quick'"):
        profiled(decode_config(8, 8), "quick")
    canvas = decode_config(8, 8, sampler="canvas")
    assert profiled(canvas, "exact") == canvas
    with pytest.raises(DispError, match="has no profile 'fast'"):
        profiled(canvas, "fast")


def test_answers_and_passes_of_a_small_model(make_model, queries):
    model = make_model(gen_length=16)
    model.generation_defaults = {"steps": 16}
    rows, denoise_slots, answers = {}, model.denoise_slots, {}
    for name in PROFILES:
        seen = rows.setdefault(name, [])

        def spy(prefix, response, slots, past=None, *, keep=False, seen=seen):
            seen.append(past is None)
            return denoise_slots(prefix, response, slots, past, keep=keep)

        model.denoise_slots = spy
        answers[name] = generate(model, queries, own_settings(model, profile=name))
    assert answers["exact"] == generate(model, queries, own_settings(model))
    assert rows["exact"] == [True] * 16
    # Whole passes come first, and again after as many steps as the profile says.
    assert rows["fast"] == [True, *[False] * 7] and rows["fastest"] == [True, *[False] * 3]
    assert len(set(map(tuple, answers.values()))) > 1
