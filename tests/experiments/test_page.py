"""The page of the study is written from the stored results, and judges the paper's claims by them."""

import json

from experiments.test_summary import results, share

from disp.experiments.recipe import experiments
from scripts.experiment_pages import EXPERIMENTS, NOT_YET, PAGE, START, fall_claim, section, store, written


def test_the_page_is_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), "run python scripts/experiment_pages.py"


def test_every_experiment_has_a_section():
    assert set(EXPERIMENTS) == set(experiments())
    for name in EXPERIMENTS:
        assert START.format(name) in PAGE.read_text(encoding="utf-8")


def test_without_results_there_are_no_numbers(tmp_path):
    assert section("main", tmp_path) == NOT_YET


def test_claims_are_judged_by_the_results(tmp_path):
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "results.json").write_text(json.dumps(results((1, 0, 0), (0.76, 0.8, 0.8))))
    text = section("main", tmp_path)
    assert "- Before a defence, ASR (w/t) is above 90%: **borne out, 1 of 1**." in text
    assert "- After *ours*, ASR (w/t) is below 5%: **borne out, 1 of 1**." in text
    assert "- After *ours*, at least 89% of the clean quality is left: **borne out, 1 of 1**." in text
    assert "`disp experiment made`, 2026-11-29, version 1.0, on 2 cores of a processor" in text


def test_what_the_results_do_not_bear_out_is_said_with_its_numbers(tmp_path):
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "results.json").write_text(json.dumps(results((20, 20, 20), (0.4, 0.4, 0.4))))
    text = section("main", tmp_path)
    assert "below 5%: **not borne out, 0 of 1**. Not for refusal, patch, 10% poisoned: 40.0%." in text
    assert "clean quality is left: **not borne out, 0 of 1**. Not for refusal, patch, 10% poisoned: 50.0%." in text


def test_the_fall_is_sharp_where_little_is_lost():
    place = {"target": "refusal", "trigger": "patch", "rate": 0.1, "seed": 0}

    def curve(quality):
        rows = [
            {"ratio": 0.0, "asr_with_trigger": share(100, 100), "clean_quality": share(80, 100)},
            {"ratio": 0.1, "asr_with_trigger": share(1, 100), "clean_quality": share(quality, 100)},
        ]
        cells = [{**place, "defence": "ours", "found": {"ratios": [0.0, 0.1], "by_ratio": rows}}]
        return {**results((0,)), "kind": "mask-ratio", "attacks": [place], "cells": cells}

    (told,) = fall_claim(curve(80))
    assert "**borne out, 1 of 1** (refusal, patch: at ρ = 0.1, with 100.0% of the quality)" in told
    (told,) = fall_claim(curve(40))
    assert "**not borne out, 0 of 1** (refusal, patch: at ρ = 0.1, with 50.0% of the quality)" in told


def test_results_of_a_run_are_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.experiment_pages.RESULTS", tmp_path / "docs")
    (tmp_path / "runs" / "main").mkdir(parents=True)
    (tmp_path / "runs" / "main" / "results.json").write_text("{}")
    (tmp_path / "runs" / "main" / "main.png").write_bytes(b"png")
    assert store(tmp_path / "runs") == ["main"]
    assert sorted(each.name for each in (tmp_path / "docs" / "main").iterdir()) == ["main.png", "results.json"]
