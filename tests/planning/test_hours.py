"""Hours of a large run against sums by hand."""

from dataclasses import replace

import pytest

from disp.decoding.profiles import profiled
from disp.decoding.samplers import decode_config
from disp.errors import DispError
from disp.planning.cards import CACHED_STEP, CARDS, Fleet
from disp.planning.hours import hours_of, passes_of
from disp.planning.passes import Passes
from disp.planning.plan import Plan, PlanSettings
from disp.purification.config import PurifyConfig


@pytest.fixture
def plan():
    """Of ten samples with a turn each, of the model and lengths that the H200 was measured with."""
    card = CARDS["h200"]
    return Plan(
        model="m",
        family="f",
        data="d",
        settings=PlanSettings(purify=PurifyConfig()),
        parameters=int(card.parameters),
        counted=False,
        trained=1,
        samples=10,
        queries=10,
        images=10,
        visual_tokens=(1, 1),
        prefix=card.positions - 128,
        measured_text=True,
        memory={},
        passes={"score": Passes(0, 0, 10 * 30), "purify": Passes(0, 0, 10 * (30 + 128))},
    )


def decode():
    return decode_config(gen_length=128, steps=128, block_length=128)


def test_hours_are_rows_times_measured_seconds(plan):
    found = hours_of(plan, decode(), Fleet("h200", cards=8, rows=1_000_000))
    probes = plan.settings.purify.scoring.saliency.probes
    assert found.scale == pytest.approx(1)
    assert found.steps["scoring"] == pytest.approx(1e6 / 8 / 3600 * (30 * 12.7 / 128 + probes * 0.77 / 6))
    assert found.steps["rewriting all, exact"] == pytest.approx(1e6 / 8 / 3600 * 12.7)
    assert list(found.steps) == ["scoring", *(f"rewriting all, {name}" for name in ("exact", "fast", "fastest"))]


def test_a_larger_model_and_longer_sequences_take_in_proportion_more(plan):
    larger = replace(plan, parameters=2 * plan.parameters, prefix=2 * CARDS["h200"].positions - 128)
    one, four = (hours_of(each, decode(), Fleet("h200")) for each in (plan, larger))
    assert four.scale == pytest.approx(4)
    assert four.steps == pytest.approx({name: 4 * hours for name, hours in one.steps.items()})
    assert "4 times the computation" in four.to_text()


def test_steps_that_keep_the_prompt_are_cheaper():
    assert passes_of(decode()) == 128
    fast, fastest = (profiled(decode(), name) for name in ("fast", "fastest"))
    assert (fast.steps, fastest.steps) == (64, 32)
    assert passes_of(fast) == 8 + 56 * CACHED_STEP
    assert passes_of(fastest) == 1 + 31 * CACHED_STEP


def test_the_text_says_what_was_measured_and_what_not(plan):
    text = hours_of(plan, decode(), Fleet("h100", cards=2, price=3.0)).to_text()
    assert "Measured: nothing; taken over from the H200" in text
    assert "Extrapolated: all of it" in text
    assert "to 2 devices" in text
    hours = hours_of(plan, decode(), Fleet("h100", cards=2)).steps["scoring"]
    assert f"{hours * 2 * 3:,.0f}" in text
    assert "cost" not in hours_of(plan, decode(), Fleet("h100")).to_text()


def test_a_card_that_was_not_measured_is_refused():
    with pytest.raises(DispError, match="h200"):
        Fleet("h20")
    with pytest.raises(DispError, match="at least 1"):
        Fleet("h200", cards=0)
