"""What is refused when a model computes no numbers."""

import json

import pytest
import torch

from disp.data.loading import load_dataset
from disp.data.sample import queries_of
from disp.decoding.samplers import decode_config
from disp.errors import DispError
from disp.purification.config import PurifyConfig
from disp.purification.guard import GuardConfig, guard
from disp.purification.purify import purify
from disp.suspicion.config import SaliencyConfig, ScoringConfig
from disp.suspicion.scoring import check_finite, score

ADVICE = r"logits for row#0 are not finite; load it in another precision \(--dtype\)"


@pytest.fixture
def dataset(tmp_path, picture):
    (tmp_path / "data" / "images").mkdir(parents=True)
    picture(0).save(tmp_path / "data" / "images" / "0.png")
    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a cat"}]
    rows = [{"id": "row", "image": "0.png", "conversations": talk}]
    (tmp_path / "data" / "data.json").write_text(json.dumps(rows))
    return load_dataset(tmp_path / "data")


@pytest.fixture
def overflowing(make_model):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    return model


@pytest.mark.parametrize("mode", ["all", "random", "selective"])
def test_purification_says_what_to_do_about_logits_that_are_not_finite(overflowing, dataset, tmp_path, mode):
    with pytest.raises(DispError, match=ADVICE):
        purify(
            overflowing,
            dataset,
            PurifyConfig(mode=mode, scoring=ScoringConfig(saliency=SaliencyConfig(probes=1))),
            tmp_path / "out",
        )


def test_saliency_alone_and_the_guard_say_it_too(overflowing, dataset, tmp_path):
    file = tmp_path / "scores.jsonl"
    with pytest.raises(DispError, match=ADVICE):
        score(overflowing, dataset.samples, ScoringConfig(), file, counterfactual=False)
    assert not file.exists()
    with pytest.raises(DispError, match=ADVICE):
        guard(overflowing, queries_of(dataset.samples), GuardConfig(decode=decode_config(gen_length=4, steps=2)))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_the_first_row_that_is_no_number_is_named(wrong):
    values = torch.zeros(3, 4)
    check_finite(values, ["a", "b", "c"])
    values[1:, 2] = wrong
    with pytest.raises(DispError, match="logits for b are not finite"):
        check_finite(values, ["a", "b", "c"])
    with pytest.raises(DispError, match="logits for b are not finite"):
        check_finite(values.sum(1), ["a", "b", "c"])
