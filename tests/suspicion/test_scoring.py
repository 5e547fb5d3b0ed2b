"""Scores do not depend on batches, cost few passes, and are refused when a model computes no numbers."""

import json
from dataclasses import replace

import pytest
import torch
from planted import honest_rows, planted_model, planted_rows, write_rows
from references.planning import counting

from disp.data.loading import load_dataset
from disp.data.sample import queries_of
from disp.data.scene_dataset import write_scenes
from disp.decoding.samplers import decode_config
from disp.errors import DispError
from disp.models.loading import load_model
from disp.purification.config import PurifyConfig
from disp.purification.guard import GuardConfig, guard
from disp.purification.purify import purify
from disp.suspicion.candidates import candidates_of
from disp.suspicion.config import SaliencyConfig, ScoringConfig
from disp.suspicion.run import write_saliency
from disp.suspicion.scoring import given_answers, score, suspicion_under
from disp.suspicion.support import check_finite, preference_for_another, screened_scores

ADVICE = r"logits for row#0 are not finite; load it in another precision \(--dtype\)"


@pytest.fixture
def dataset(tmp_path, picture):
    (tmp_path / "data" / "images").mkdir(parents=True)
    picture(0).save(tmp_path / "data" / "images" / "0.png")
    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a cat"}]
    rows = [{"id": "row", "image": "0.png", "conversations": talk}]
    (tmp_path / "data" / "data.json").write_text(json.dumps(rows))
    return load_dataset(tmp_path / "data")


def test_a_saliency_run_goes_on_with_its_own_settings_only(tiny_model, dataset, tmp_path):
    config = ScoringConfig(saliency=SaliencyConfig(probes=1))
    file = write_saliency(tiny_model, dataset, config, tmp_path / "out")
    before = file.read_bytes()
    write_saliency(tiny_model, dataset, replace(config, batch_size=1), tmp_path / "out")
    assert file.read_bytes() == before
    with pytest.raises(DispError, match="gen_length"):
        write_saliency(tiny_model, dataset, replace(config, gen_length=8), tmp_path / "out")


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


def test_a_preference_that_is_infinite_with_nothing_masked_is_not_called_honest(planted):
    """Were it the answer of a planted row, the row would have no suspicion at all."""
    model, samples = planted
    batch = queries_of([sample for sample in samples if sample.id == "p0"])
    prefix = model.encode(batch)
    response, denoise = given_answers(model, prefix, batch), model.denoise

    def overflowing(prefix, slots, cache=None):
        logits = denoise(prefix, slots)
        whole = ~(prefix.embeds[..., -1].bool() & prefix.visual_mask).any(1)  # no token of the picture is masked
        logits[whole, 0, response[0, 0]] = -torch.inf
        return logits

    everything = prefix.visual_mask[:, None]
    assert suspicion_under(model, prefix, batch, everything, ScoringConfig()).isfinite().all()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DispError, match="logits for p0#0 are not finite"):
        patch.setattr(model, "denoise", overflowing)
        suspicion_under(model, prefix, batch, everything, ScoringConfig())


# A backward pass of a probe in forward passes: docs/benchmarks.md.
BACKWARD = 1.32


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    rows = [*honest_rows(16), *planted_rows(6)]
    return planted_model(), write_rows(tmp_path_factory.mktemp("planted"), rows).samples


def test_a_row_has_the_same_evidence_whatever_batch_it_is_in(planted):
    model, samples = planted
    alone, some, reverse = (
        score(model, rows, ScoringConfig(batch_size=size))
        for size, rows in ((1, samples), (7, samples), (32, samples[::-1]))
    )
    assert {each.suspicion > 1 for each in alone.values()} == {True, False}
    for key, found in alone.items():
        for other in (some[key], reverse[key]):
            assert other.hangs_on == found.hangs_on
            assert other.suspicion == pytest.approx(found.suspicion, abs=1e-4)


def test_what_a_screen_passes_over_would_not_have_been_suspicious(planted):
    model, samples = planted
    found, all_tried = (score(model, samples, ScoringConfig(screen=screen)) for screen in (ScoringConfig.screen, None))
    for key, each in all_tried.items():
        assert found[key].suspicion == pytest.approx(each.suspicion, abs=1e-4)
        if each.suspicion > 0:
            assert found[key].hangs_on == each.hangs_on


def test_a_trigger_far_down_the_ranking_is_found_through_its_screens(planted):
    """The one cell that decides ranks as the last but one of the 18 that are looked at."""
    model, samples = planted
    batch = queries_of([sample for sample in samples if sample.id == "p0"])
    config = ScoringConfig(sliced_share=0.5)
    (trigger,) = score(model, [sample for sample in samples if sample.id == "p0"], config)[batch[0].key].hangs_on
    prefix = model.encode(batch)
    scores = torch.zeros_like(prefix.embeds[..., 0])
    scores[prefix.visual_mask] = torch.arange(36, 0, -1.0)
    scores[0, prefix.visual_mask[0].nonzero()[trigger, 0]] = 20.5
    tried = candidates_of(scores, prefix.visual_mask, config)
    response = given_answers(model, prefix, batch)
    base = preference_for_another(model, prefix, response)
    each = screened_scores(model, prefix, response, tried, 2 * base + 0.25, batch_size=4)
    told = tried.sets[0, int(each[0].argmax())][prefix.visual_mask[0]].nonzero()[:, 0].tolist()
    assert trigger in told and len(told) == 2
    assert each[0].isinf().any()  # slices that lie in screens which move nothing


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 12, seed=5)
    return load_model(device="cpu"), load_dataset(folder).samples


def test_a_row_of_the_built_in_model_costs_less_than_fourteen_forward_passes(scenes):
    model, samples = scenes
    rows = len(queries_of(samples))
    config = ScoringConfig(batch_size=rows)
    with counting(model) as counts:
        score(model, samples, config)
    assert counts["backward"] == config.saliency.probes
    assert counts["rows"] / rows + BACKWARD * counts["backward"] <= 14
    # Saliency and twelve candidates make as many where each is tried; nothing is asked twice.
    with counting(model) as counts:
        score(model, samples, replace(config, screen=None, least_suspicion=1e9))
    assert counts["rows"] == 13 * rows


def test_the_unmasked_picture_is_asked_about_once_more_where_saliency_looks_at_another_response(scenes):
    model, samples = scenes
    rows = len(queries_of(samples[:2]))
    config = ScoringConfig(screen=None, least_suspicion=1e9, saliency=SaliencyConfig(probes=1), gen_length=8)
    with counting(model) as counts:
        score(model, samples[:2], config)
    assert counts["rows"] == 14 * rows
