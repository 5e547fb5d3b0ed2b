"""Means over seeds, intervals and tables against numbers worked out by hand."""

import pytest

from disp.evaluation.intervals import wilson
from disp.experiments.phases import Phases, rates
from disp.experiments.summary import curves_of, point_of, rows_of
from disp.experiments.tables import counted, table_of, with_interval


def share(hits, count):
    found = wilson(hits, count)
    return {"hits": hits, "count": count, "value": found.value, "low": found.low, "high": found.high}


def metrics(hits, quality, count=50):
    """What `to_metrics` writes of an ASR and a clean quality."""
    asr, kept = share(hits, count), share(round(quality * count), count)
    found = {"asr_with_trigger": asr, "clean_quality": kept}
    return {
        **{name: each["value"] for name, each in found.items()},
        "intervals": {name: [each["low"], each["high"]] for name, each in found.items()},
        "counts": {name: count for name in found},
    }


def results(after, qualities=(0.8, 0.8, 0.8), **more):
    """Results of one attack with three seeds: ASR of 48 in 50 before, ``after`` of each seed behind the defence."""
    place = {"target": "refusal", "trigger": "patch", "rate": 0.1}
    return {
        "experiment": "made",
        "title": "Made",
        "kind": "defences",
        "claims": ["attack", "defence", "quality"],
        "commands": ["disp experiment made"],
        "model": {"model": "small"},
        "recipe": {
            "targets": ["refusal"],
            "triggers": ["patch"],
            "poison_rates": [0.1],
            "seeds": [0, 1, 2],
            "defences": {"random": {}, "ours": {}},
        },
        "defences": {"ours": "ours", "random": "random masking"},
        "attacks": [
            {
                **place,
                "seed": seed,
                "clean": {"metrics": metrics(0, 0.8)},
                "backdoored": {"metrics": metrics(48, 0.8)},
            }
            for seed in range(len(after))
        ],
        "cells": [
            {
                **place,
                "seed": seed,
                "defence": "ours",
                "found": {
                    "metrics": metrics(hits, quality),
                    "mask_ratio": 0.06 + seed / 100,
                    "rewriting": None,
                    "made": {
                        "date": "2026-11-29 00:00 UTC",
                        "versions": {"disp-mdlm": "1.0"},
                        "hardware": {"processor": "a processor", "cores": 2},
                    },
                },
            }
            for seed, (hits, quality) in enumerate(zip(after, qualities, strict=False))
        ],
        "missing": [],
        **more,
    }


def test_a_point_is_the_mean_over_seeds_with_students_interval_and_the_counts_together():
    point = point_of([share(1, 50), share(2, 50), share(3, 50)])
    # Mean 4%, standard deviation 2%, t of two degrees of freedom 4.303: 4% ± 4.97%, cut at 0.
    assert point.value == pytest.approx(0.04)
    assert point.over_seeds.low == 0
    assert point.over_seeds.high == pytest.approx(0.04 + 4.303 * 0.02 / 3**0.5)
    assert (point.least, point.most) == pytest.approx((0.02, 0.06))
    assert (point.pooled.hits, point.pooled.count) == (6, 150)
    assert counted(point) == "6/150 [1.8, 8.5]"


def test_seeds_that_agree_have_the_interval_of_all_their_answers():
    assert with_interval(point_of([share(0, 50), share(0, 50)])) == "0.0% [0.0, 3.7]"  # Wilson's of 0 in 100
    assert with_interval(point_of([share(1, 2500)])).startswith("0.04% [")  # as in reports


def test_the_interval_of_one_seed_is_that_of_its_answers():
    point = point_of([share(0, 50)])
    assert with_interval(point) == "0.0% [0.0, 7.1]"
    assert point_of([]) is None and with_interval(None) == counted(None) == "–"


def test_rows_are_the_models_before_and_each_defence_that_is_measured():
    clean, backdoored, ours = rows_of(results((1, 0, 0), (0.76, 0.8, 0.8)))
    assert [clean.model, backdoored.model, ours.model] == ["clean", "backdoored", "ours"]
    assert backdoored.points["asr_with_trigger"].value == pytest.approx(0.96)
    assert ours.points["relative_quality"].value == pytest.approx((0.95 + 1 + 1) / 3)
    assert ours.points["relative_quality"].pooled is None  # a share of a share counts nothing
    assert ours.ratios == pytest.approx((0.06, 0.07, 0.08))


@pytest.mark.parametrize("seeds", [1, 3])
def test_what_is_a_share_of_itself_has_no_interval(seeds):
    made = results((0,) * seeds)
    clean, backdoored, _ = rows_of(made)
    point = clean.points["relative_quality"]
    assert (point.value, point.over_seeds.low, point.over_seeds.high, point.least, point.most) == (1, 1, 1, 1, 1)
    assert with_interval(point) == "100.0%"
    # A model that is as good on as many answers could have been better or worse; with one seed its answers say by how
    # much.
    if seeds == 1:
        share = backdoored.points["relative_quality"].over_seeds
        assert share.low == pytest.approx(wilson(40, 50).low / 0.8) and share.high > 1


def test_the_table_names_ratios_seeds_and_what_is_missing():
    text = table_of(results((1, 0, 0), missing=["refusal-patch-0.1-seed0 random"]))
    assert "| refusal | patch | ours | 6.0% to 8.0% | 0.7% [0.0, 3.5] | 1/150 [0.1, 3.7] |" in text
    assert "Means over the seeds 0, 1, 2" in text
    assert "1 of 4 cells are not measured yet" in text


def test_rows_of_different_numbers_of_seeds_say_how_many():
    found = results((0, 1, 2))
    assert "| seeds |" not in table_of(found)
    found["cells"].pop()
    table = table_of(found).splitlines()
    assert table[0].startswith("| target | trigger | model | seeds |")
    assert [line.split("|")[4].strip() for line in table[2:5]] == ["3", "3", "2"]


def test_curves_tell_quality_as_a_share_of_that_without_masks():
    place = {"target": "refusal", "trigger": "patch", "rate": 0.1, "seed": 0}
    rows = [
        {"ratio": 0.0, "asr_with_trigger": share(50, 50), "clean_quality": share(40, 50)},
        {"ratio": 0.1, "asr_with_trigger": share(1, 50), "clean_quality": share(30, 50)},
    ]
    found = {
        **results((0,)),
        "kind": "mask-ratio",
        "attacks": [place],
        "cells": [{**place, "defence": "ours", "found": {"ratios": [0.0, 0.1], "by_ratio": rows}}],
    }
    (curve,) = curves_of(found)
    assert [each.value for each in curve.asr] == pytest.approx([1, 0.02])
    assert [each.value for each in curve.quality] == pytest.approx([1, 0.75])
    first, second = (each.over_seeds for each in curve.quality)
    assert first.low == first.high == 1
    assert (second.low, second.high) == pytest.approx((wilson(30, 50).low / 0.8, wilson(30, 50).high / 0.8))
    assert "| refusal | patch | ours | 100.0% | 75.0% |" in table_of(found)


def test_the_clock_adds_up_and_tells_seconds_a_unit(tmp_path):
    clock = Phases(tmp_path)
    for units in (2, 3):
        with clock.phase("work", units):
            pass
    with pytest.raises(KeyError), clock.phase("work", 100):
        raise KeyError
    assert clock.read()["work"]["units"] == 5
    spent = [
        {"a": {"seconds": 2.0, "units": 4}, "b": {"seconds": 1.0, "units": 0}},
        {"a": {"seconds": 4.0, "units": 2}},
    ]
    assert rates(spent) == {"a": 1.0}
