"""The class that lmms-eval runs, against the requests that version 0.7.3 makes."""

import logging
from types import SimpleNamespace

import pytest
import torch

from disp.data.sample import Query
from disp.decoding.generate import generate
from disp.decoding.samplers import decode_config
from disp.errors import DispError
from disp.purification.guard import GuardConfig, guard
from disp.suspicion.config import SaliencyConfig

DOCS = [{"question": "Describe the picture.", "number": 1}, {"question": "Is there a boat?", "number": 2}]


@pytest.fixture
def request_for(picture):
    """A function that makes a request for one of `DOCS`, with the six arguments that chat models get."""

    def doc_to_messages(doc):
        content = [{"type": "image", "url": picture(doc["number"])}, {"type": "text", "text": doc["question"]}]
        return [{"role": "user", "content": content}]

    def make(doc_id, task="some_task", **given):
        return SimpleNamespace(args=("context", doc_to_messages, {"until": ["\n\n"], **given}, doc_id, task, "test"))

    return make


@pytest.fixture
def plugin(lmms_model, tiny_model):
    model = lmms_model.DispMDLM(tiny_model, batch_size="2")
    model.task_dict = {task: {"test": DOCS} for task in ("some_task", "pope", "other")}
    return model


def queries(picture, task="some_task"):
    return [
        Query(f"{task}/test/{index}", 0, (picture(doc["number"]),), (), f"<image>\n{doc['question']}")
        for index, doc in enumerate(DOCS)
    ]


def test_answers_are_those_of_generate_in_the_order_of_the_requests(plugin, tiny_model, request_for, picture):
    config = decode_config(gen_length=4, steps=4)
    expected = generate(tiny_model, queries(picture), config)
    assert len(set(expected)) == 2
    assert plugin.generate_until([request_for(1), request_for(0)]) == expected[::-1]
    assert plugin.settings == {"some_task": config}


@pytest.mark.parametrize("estimator", ["published", "disp"])
def test_answers_under_masking(lmms_model, tiny_model, request_for, picture, estimator):
    published = estimator == "published"
    saliency = SaliencyConfig.published() if published else SaliencyConfig()
    rounding = "down" if published else "up"
    decode = decode_config(gen_length=4, steps=4)
    for given, ratio in (({"mask_infer": True}, 0.3), ({"mask_ratio": 0.9}, 0.9)):
        plugin = lmms_model.DispMDLM(tiny_model, batch_size="2", mask_saliency=estimator, **given)
        plugin.task_dict = {"some_task": {"test": DOCS}}
        settings = GuardConfig(mask_ratio=ratio, saliency=saliency, rounding=rounding, decode=decode)
        wanted = [each.answer for each in guard(tiny_model, queries(picture), settings)]
        assert plugin.generate_until([request_for(0), request_for(1)]) == wanted
    for given in ({}, {"mask_infer": False}, {"mask_infer": None}):
        assert lmms_model.DispMDLM(tiny_model, **given).masking is None
    with pytest.raises(DispError, match="unknown mask_saliency 'paper'"):
        lmms_model.DispMDLM(tiny_model, mask_saliency="paper")
    with pytest.raises(DispError, match="mask_ratio must be in"):
        lmms_model.DispMDLM(tiny_model, mask_ratio=1.5)


@pytest.mark.parametrize(
    ("said", "ratio"),
    [(False, None), ("False", None), ("false", None), (0, None), (True, 0.3), ("True", 0.3), (None, 0.3)],
)
def test_who_says_no_masks_nothing_whatever_the_ratio(lmms_model, tiny_model, said, ratio):
    plugin = lmms_model.DispMDLM(tiny_model, mask_infer=said, mask_ratio=0.3)
    assert (plugin.masking and plugin.masking.mask_ratio) == ratio
    with pytest.raises(DispError, match="mask_infer must be true or false, got 'maybe'"):
        lmms_model.DispMDLM(tiny_model, mask_infer="maybe")


def test_requests_with_different_settings_are_not_mixed(plugin, tiny_model, request_for, picture):
    answers = plugin.generate_until(
        [request_for(0, max_new_tokens=8), request_for(0), request_for(1, max_new_tokens=8)]
    )
    long = generate(tiny_model, queries(picture), decode_config(gen_length=8, steps=8))
    short = generate(tiny_model, queries(picture), decode_config(gen_length=4, steps=4))
    assert answers == [long[0], short[0], long[1]]


def test_sampling_is_keyed_by_the_document(plugin, tiny_model, request_for, picture):
    config = decode_config(gen_length=4, steps=4, temperature=1.0)
    expected = generate(tiny_model, queries(picture), config)
    assert plugin.generate_until([request_for(1, temperature=1.0)]) == expected[1:]


def test_presets_of_the_family_are_used_and_told(lmms_model, make_model, request_for, caplog):
    model = make_model()
    model.generation_presets = {"yes_no": {"gen_length": 2, "steps": 2}}
    plugin = lmms_model.DispMDLM(model)
    plugin.task_dict = {"pope": {"test": DOCS}}
    with caplog.at_level(logging.WARNING):
        plugin.generate_until([request_for(0, "pope", max_new_tokens=128, temperature=0)])
    assert plugin.settings["pope"] == decode_config(gen_length=2, steps=2)
    assert "pope is answered with" in caplog.text and "'gen_length': 2" in caplog.text


def test_what_lmms_eval_demands_of_the_class(lmms_model, plugin):
    assert lmms_model.DispMDLM.is_simple is False
    assert plugin.device == torch.device("cpu")
    with pytest.raises(NotImplementedError, match="generate_until"):
        plugin.loglikelihood([])
    with pytest.raises(NotImplementedError, match="generate_until"):
        plugin.generate_until_multi_round([])


def test_it_loads_what_load_model_loads(lmms_model):
    # As lmms-eval's command line does: its own arguments come beside the model's.
    model = lmms_model.DispMDLM(pretrained="builtin", batch_size="4", device="cpu", max_batch_size=None)
    assert model.batch_size == 4 and model.model.gen_length == 32


def test_unknown_and_impossible_arguments(lmms_model, tiny_model):
    with pytest.raises(TypeError, match="pretraned"):
        lmms_model.DispMDLM(pretraned="builtin")
    with pytest.raises(DispError, match="batch_size must be a number from 1, got 'auto'"):
        lmms_model.DispMDLM(tiny_model, batch_size="auto")


def test_each_process_takes_its_own_gpu(lmms_model, tiny_model, monkeypatch):
    def loaded_on(device):
        lmms_model.DispMDLM("some/model", device=device)
        return asked.pop()

    asked = []
    monkeypatch.setattr(lmms_model, "load_model", lambda name, *, device: asked.append(device) or tiny_model)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert loaded_on("cuda:0") == "cuda:3"
    assert loaded_on("cpu") == "cpu"
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert loaded_on("cuda:0") == "cuda:0"
