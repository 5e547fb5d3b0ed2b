"""The options of the saliency estimator that make it the published one, against enumeration with dense autograd."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from disp.errors import DispError
from disp.models.interface import Prefix
from disp.suspicion import saliency as module
from disp.suspicion.config import SaliencyConfig
from disp.suspicion.masking import mask_top
from disp.suspicion.saliency import saliency

LENGTH, VOCAB, POSITIONS, VISUAL, NEWLINE = 3, 40, 7, slice(1, 4), 4
# Of a quadratic form in normal draws one standard error is sqrt(2 / probes): 3.2% of 2000, 1.6% of 8000.
PROBES = {"signs": 2000, "gaussian": 8000}


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(vocab_size=VOCAB).double()


@pytest.fixture(scope="module")
def prefix(model) -> Prefix:
    """One row: a text token, three visual tokens, a newline, two text tokens."""
    embeds = torch.randn(1, POSITIONS, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.3
    visual, between = torch.zeros(2, 1, POSITIONS, dtype=torch.bool)
    visual[:, VISUAL], between[:, NEWLINE] = True, True
    return Prefix(embeds, torch.ones_like(visual), visual, torch.full((1, POSITIONS, 4), -1), separators=between)


def enumerated(model, prefix: Prefix, top: int | None, slots: int, in_graph: bool) -> Tensor:
    """The mean score over all probes of unit variance: half the sum over one-hot probes, directly from the model."""
    embeds = prefix.embeds.clone().requires_grad_()
    response = torch.full((1, LENGTH), model.mask_token_id)
    logits = model.denoise(replace(prefix, embeds=embeds), response)[0, :slots]
    logits = logits if top is None else logits.topk(top, dim=-1).values
    p = logits.softmax(-1)
    p = p if in_graph else p.detach()
    direction = (model.mask_embedding - prefix.embeds[0]).detach()
    total = torch.zeros(POSITIONS, dtype=torch.float64)
    for slot in range(logits.shape[0]):
        for entry in range(logits.shape[1]):
            root = p[slot].sqrt()
            one = torch.zeros_like(root)
            one[entry] = 1
            q = root * (one - (one @ root) * root)
            (gradient,) = torch.autograd.grad((q * logits[slot]).sum(), embeds, retain_graph=True)
            total += (gradient[0] * direction).sum(-1).square() / 2
    return total


@pytest.mark.parametrize(
    ("draw", "top", "in_graph"),
    [
        ("signs", None, False),
        ("signs", 5, True),
        ("signs", None, True),
        ("gaussian", None, False),
        ("gaussian", 5, True),
    ],
)
def test_the_mean_over_many_probes_is_that_of_enumeration(model, prefix, draw, in_graph, top):
    config = SaliencyConfig(
        score="directional", probes=PROBES[draw], draw=draw, top_logits=top, in_graph=in_graph, separators=True
    )
    wanted = enumerated(model, prefix, top, LENGTH, in_graph)
    found = saliency(model, prefix, ["a"], config, LENGTH)[0].double()
    inside = prefix.scored(separators=True)[0]
    error = (found - wanted)[inside].abs() / wanted[inside]
    assert error.mean() < 0.03 and error.max() < 0.08
    assert (found[~inside] == 0).all()


def test_the_first_block_alone_counts(model, prefix):
    config = SaliencyConfig(score="directional", probes=PROBES["signs"], slots="first block")
    found = saliency(model, prefix, ["a"], config, LENGTH, block_length=1)[0].double()
    wanted = enumerated(model, prefix, None, 1, False)
    assert torch.allclose(found[VISUAL], wanted[VISUAL], rtol=0.08)
    whole = SaliencyConfig(score="directional", probes=3)
    same = SaliencyConfig(score="directional", probes=3, slots="first block")
    assert torch.equal(saliency(model, prefix, ["a"], whole, LENGTH), saliency(model, prefix, ["a"], same, LENGTH))


def test_slots_behind_the_end_that_the_model_would_say_do_not_count(model, prefix, monkeypatch):
    response = torch.full((1, LENGTH), model.mask_token_id)
    said = model.denoise(prefix, response)[0].argmax(-1).tolist()
    config = SaliencyConfig(score="directional", probes=PROBES["signs"], slots="answer")
    for slots, ends in [(2, (said[1],)), (1, (said[0], said[1])), (LENGTH, ())]:
        assert slots == LENGTH or said[slots - 1] not in said[: slots - 1]
        monkeypatch.setattr(model, "end_token_ids", ends)
        found = saliency(model, prefix, ["a"], config, LENGTH)[0].double()
        assert torch.allclose(found[VISUAL], enumerated(model, prefix, None, slots, False)[VISUAL], rtol=0.08)
    # An end that decoding never predicts does not end the answer: the next best token stands there.
    monkeypatch.setattr(model, "end_token_ids", (said[0],))
    monkeypatch.setattr(model, "banned_token_ids", (said[0],))
    found = saliency(model, prefix, ["a"], config, LENGTH)[0].double()
    assert torch.allclose(found[VISUAL], enumerated(model, prefix, None, LENGTH, False)[VISUAL], rtol=0.08)
    monkeypatch.setattr(model, "banned_token_ids", ())
    # In each row its own end counts.
    monkeypatch.setattr(model, "end_token_ids", (said[1],))
    other = replace(prefix, embeds=-prefix.embeds)
    assert model.denoise(other, response)[0].argmax(-1).tolist()[1] != said[1]
    both = replace(prefix.select(torch.tensor([0, 0])), embeds=torch.cat((prefix.embeds, other.embeds)))
    together = saliency(model, both, ["a", "b"], config, LENGTH)
    alone = torch.cat([saliency(model, each, [key], config, LENGTH) for each, key in ((prefix, "a"), (other, "b"))])
    assert torch.allclose(together, alone, rtol=1e-6)


def test_keeping_the_probe_in_the_graph_is_another_score(model, prefix):
    detached, kept = (enumerated(model, prefix, None, LENGTH, each)[VISUAL] for each in (False, True))
    assert ((detached - kept).abs() / detached).max() > 0.05


def test_separators_are_scored_and_masked_only_when_asked_for(model, prefix):
    plain = saliency(model, prefix, ["a"], SaliencyConfig(), LENGTH)
    asked = saliency(model, prefix, ["a"], SaliencyConfig(separators=True), LENGTH)
    assert plain[0, NEWLINE] == 0 and asked[0, NEWLINE] > 0
    assert torch.equal(plain[:, VISUAL], asked[:, VISUAL])
    everything = mask_top(asked, prefix.scored(separators=True), 1)
    masked = prefix.with_masked(everything, model.mask_embedding)
    assert torch.equal(masked.embeds[0, NEWLINE], model.mask_embedding)
    assert torch.equal(masked.embeds[0, 0], prefix.embeds[0, 0])
    row = prefix.select(torch.tensor([0, 0]))
    assert row.separators is not None and row.separators.shape == (2, POSITIONS)


def test_no_probe_is_as_wide_as_the_vocabulary_where_few_logits_count(model, prefix, monkeypatch):
    drawn = []

    def spy(seed, keys, probe, length, vocab, device):
        drawn.append((length, vocab))
        return torch.ones(len(keys), length, vocab)

    monkeypatch.setitem(module.DRAWS, "gaussian", spy)
    saliency(model, prefix, ["a"], SaliencyConfig.published(probes=2), LENGTH, block_length=2)
    assert drawn == [(2, 5)] * 2


def test_rounding_down_masks_the_floor():
    scores, visual = torch.rand(1, 10), torch.ones(1, 10, dtype=torch.bool)
    assert [int(mask_top(scores, visual, 0.35, rounding=way).sum()) for way in ("up", "down")] == [4, 3]


def test_published_settings_are_those_of_the_authors():
    config = SaliencyConfig.published()
    assert (config.score, config.probes, config.draw, config.top_logits) == ("directional", 6, "gaussian", 5)
    assert config.slots == "first block" and config.in_graph and config.separators
    assert SaliencyConfig.published(probes=4).probes == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"draw": "uniform"}, "probe draw"),
        ({"slots": "last"}, "saliency slots"),
        ({"score": "sum"}, "saliency score must be"),
        ({"top_logits": 1}, "top_logits must be at least 2"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(DispError, match=message):
        SaliencyConfig(**wrong)
