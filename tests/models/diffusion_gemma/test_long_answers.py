"""Answers of several canvases: the first one says what is salient, and training is on one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from disp.data.sample import Query, Sample, Turn
from disp.decoding.generate import answers_of
from disp.decoding.samplers import decode_config
from disp.errors import DispError
from disp.purification.guard import GuardConfig, guard, masked_answers
from disp.suspicion.config import SaliencyConfig, ScoringConfig
from disp.suspicion.masking import mask_top
from disp.suspicion.saliency import saliency
from disp.suspicion.scoring import score_batch
from disp.training.config import TrainConfig
from disp.training.train import train

CONFIG = decode_config(gen_length=1, steps=2, sampler="canvas")


@pytest.fixture
def query(picture):
    return Query("a", 0, (picture(1),), (), "<image>\nDescribe the picture.", "A cat.")


def test_masking_goes_by_the_first_canvas_and_all_of_the_answer_is_given(gemma, query):
    canvas = gemma.canvas_length
    long = replace(CONFIG, gen_length=2 * canvas + 1)
    config = GuardConfig(mask_ratio=0.3, decode=long)
    prefix = gemma.encode([query])
    scores = saliency(gemma, prefix, [query.key], config.saliency, canvas)
    hidden = prefix.with_masked(mask_top(scores, prefix.visual_mask, 0.3), gemma.mask_embedding)
    with torch.no_grad():
        (expected,) = answers_of(gemma, hidden, long, keys=[query.key])
    assert masked_answers(gemma, [query], config) == [expected]
    assert guard(gemma, [query], config)[0].answer == expected
    for estimator in (SaliencyConfig(), SaliencyConfig.published()):
        short, more = (saliency(gemma, prefix, [query.key], estimator, length) for length in (canvas, canvas + 9))
        assert torch.equal(short, more)


def test_suspicion_is_that_of_the_first_canvas(gemma, query):
    usual = score_batch(gemma, [query], config=ScoringConfig(), counterfactual=True)
    own, defaults = gemma.gen_length, gemma.generation_defaults
    try:
        gemma.use_gen_length(3 * gemma.canvas_length)
        assert gemma.generation_defaults == defaults  # so many steps a canvas
        assert score_batch(gemma, [query], config=ScoringConfig(), counterfactual=True) == usual
    finally:
        gemma.use_gen_length(own)


def test_training_on_several_canvases_is_refused_with_what_to_do(gemma, picture, tmp_path):
    rows, own = [Sample("a", (picture(1),), (Turn("<image>\nDescribe the picture.", "A cat."),))], gemma.gen_length
    try:
        gemma.use_gen_length(2 * gemma.canvas_length)
        with pytest.raises(DispError, match=rf"trained on one canvas.*\(--gen-length {gemma.canvas_length}\)"):
            train(gemma, rows, TrainConfig(steps=1, learning_rate=1e-4), tmp_path / "out")
    finally:
        gemma.use_gen_length(own)
    assert not (tmp_path / "out").exists()
