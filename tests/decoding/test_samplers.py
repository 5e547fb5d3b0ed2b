"""The table of samplers, and their configs from flat settings."""

from dataclasses import asdict, replace

import pytest
import torch

from disp.decoding.canvas import CanvasConfig
from disp.decoding.config import DecodeConfig, Decoded
from disp.decoding.dim import DimConfig
from disp.decoding.dream import DreamConfig
from disp.decoding.generate import decode, decode_with_lengths
from disp.decoding.llada import LladaConfig
from disp.decoding.samplers import SAMPLERS, changed_config, decode_config, own_settings
from disp.errors import DispError


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_sampler_that_the_config_names_is_called(make_model, queries, monkeypatch, name):
    model, asked = make_model(), []

    def stand_in(model, prefix, config, *, keys, seed):
        asked.append((len(prefix), config.sampler, keys, seed))
        return Decoded.whole(torch.zeros(len(prefix), config.gen_length, dtype=torch.int64))

    monkeypatch.setitem(SAMPLERS, name, replace(SAMPLERS[name], decode=stand_in, needs=()))
    config = decode_config(5, 3, sampler=name)
    decoded = decode_with_lengths(model, model.encode(queries), config, keys=list("abcd"), seed=7)
    assert decoded.lengths.tolist() == [5] * 4
    assert asked == [(4, name, list("abcd"), 7)]


def test_flat_settings_become_the_sampler_s_config():
    assert decode_config(8, 4, block_length=4) == LladaConfig(8, 4, block_length=4)
    assert decode_config(8, 4, sampler="dream", step_ratio=0.5) == DreamConfig(8, 4, step_ratio=0.5)
    assert decode_config(8, 4, sampler="dim", top_k=3) == DimConfig(8, 4, top_k=3)
    assert decode_config(8, 4, sampler="canvas", block_length=4) == CanvasConfig(8, 4, block_length=4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_stored_config_comes_back(name):
    config = decode_config(8, 4, sampler=name)
    assert asdict(config)["sampler"] == name
    assert decode_config(**asdict(config)) == config and hash(config) == hash(decode_config(**asdict(config)))


def test_lists_of_json_become_tuples():
    config = decode_config(8, 8, stop=["a", [1, 2]], suffix=[3])
    assert (config.stop, config.suffix) == (("a", (1, 2)), (3,))


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("llada", {"confidence_threshold": 0.5}),
        ("llada", {"algorithm": "entropy"}),
        ("llada", {"top_k": 5}),
        ("dream", {"block_length": 4}),
        ("dream", {"confidence_threshold": 0.5}),
        ("dim", {"threshold": 0.5}),
        ("dim", {"cfg_scale": 1.0}),
        ("dim", {"stop": ((1,),)}),
        ("dim", {"suffix": (1,)}),
        ("dim", {"step_ratio": 0.5}),
        ("canvas", {"temperature": 1.0}),
        ("canvas", {"remasking": "random"}),
        ("canvas", {"algorithm": "entropy"}),
        ("llada", {"treshold": 0.5}),
    ],
)
def test_an_option_that_the_sampler_does_not_have_is_refused_with_those_that_it_has(sampler, options):
    (name,) = options
    with pytest.raises(DispError, match=f"option of the sampler '{sampler}': '{name}'; choose one of .*gen_length"):
        decode_config(8, 8, sampler=sampler, **options)


@pytest.mark.parametrize("sampler", ["dream", "dim", "canvas"])
def test_an_option_of_another_sampler_may_say_that_it_is_not_set(sampler):
    unset = {"threshold": None, "cfg_scale": 0.0, "stop": (), "suffix": (), "remasking": "low_confidence"}
    assert decode_config(8, 8, sampler=sampler, **unset) == decode_config(8, 8, sampler=sampler)


def test_the_base_is_no_config():
    with pytest.raises(TypeError, match="decode_config"):
        DecodeConfig(8, 8)


def test_a_model_that_the_sampler_is_not_for_is_named(tiny_model, queries):
    with pytest.raises(DispError, match=r"'canvas' is for .*, not for BuiltinModel; choose another of llada, dream"):
        decode(tiny_model, tiny_model.encode(queries), decode_config(8, 8, sampler="canvas"), keys=list("abcd"))


def test_own_settings_are_the_model_s_but_for_what_is_given(make_model):
    model = make_model(gen_length=16, generation={"steps": 8, "threshold": 0.9})
    assert own_settings(model) == LladaConfig(16, 8, threshold=0.9)
    assert own_settings(model, steps=None, threshold=0.5) == LladaConfig(16, 8, threshold=0.5)
    assert own_settings(model, sampler="dim", top_k=5) == DimConfig(16, 8, top_k=5)
    with pytest.raises(DispError, match="'confidence_threshold'"):
        own_settings(model, confidence_threshold=0.5)
    with pytest.raises(DispError, match="'threshold'"):
        own_settings(model, sampler="dim", threshold=0.5)


def test_what_only_the_other_sampler_knows_is_left_behind():
    own = {"gen_length": 8, "steps": 8, "sampler": "dim", "algorithm": "entropy", "prefix_cache": True}
    assert changed_config(own, {"sampler": "llada"}) == LladaConfig(8, 8, prefix_cache=True)
    assert changed_config(own, {"algorithm": "origin"}) == DimConfig(8, 8, algorithm="origin", prefix_cache=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gen_length": 0}, "gen_length"),
        ({"gen_length": 10, "block_length": 4}, "multiple of block_length"),
        ({"gen_length": 8, "block_length": 4, "steps": 3}, "multiple of the number of blocks"),
        ({"gen_length": 8, "block_length": 2, "steps": 2}, "number of blocks"),
        ({"steps": 0}, "steps"),
        ({"gen_length": "64"}, "gen_length must be a whole number, got '64'"),
        ({"gen_length": True}, "gen_length must be a whole number, got True"),
        ({"gen_length": 10**12, "steps": 8}, "gen_length must be at most 262144"),
        ({"gen_length": 8, "steps": 8, "block_length": 2.0}, r"block_length must be a whole number, got 2\.0"),
        ({"steps": 2.5}, r"steps must be a whole number, got 2\.5"),
        ({"temperature": "x"}, "a setting of the sampler 'llada' is of the wrong kind .*'temperature': 'x'"),
        ({"sampler": "dim", "top_p": []}, "a setting of the sampler 'dim' is of the wrong kind"),
        ({"remasking": "lucky"}, "unknown remasking 'lucky'.*random"),
        ({"temperature": -0.1}, "at least 0"),
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"cfg_scale": -1.0}, "cfg_scale"),
        ({"stop": "end"}, "stop must be a list"),
        ({"schedule": "sine"}, "unknown schedule 'sine'.*'cosine'"),
        ({"schedule": "shift", "schedule_shift": 0.0}, "schedule_shift"),
        ({"schedule": "shift", "gen_length": 4, "steps": 8}, "at most one step a slot"),
        ({"sampler": "dreem"}, "Did you mean 'dream'"),
        ({"sampler": "dream", "steps": 0}, "steps"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"step_ratio": 2.0}, "step_ratio"),
    ],
)
def test_invalid_configurations(options, message):
    with pytest.raises(DispError, match=message):
        decode_config(**options)


@pytest.mark.parametrize("block_length", [0, -4])
def test_block_length_must_be_positive(block_length):
    with pytest.raises(DispError, match="block_length"):
        decode_config(gen_length=8, steps=8, block_length=block_length)
