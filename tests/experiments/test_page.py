"""The page of the study is written from the stored results, and judges the paper's claims by them."""

import json

import pytest
from experiments.test_summary import results, share

from disp.errors import DispError
from disp.experiments.recipe import experiments
from disp.files import write_json
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
    assert "`disp experiment made`; 2026-11-29, version 1.0, on 2 cores of a processor; " in text


def test_nothing_is_claimed_of_what_was_not_measured(tmp_path):
    found = results((0,))
    for each in (*found["cells"], *(attack["backdoored"] for attack in found["attacks"])):
        measured = each.get("found", each)["metrics"]
        del measured["asr_with_trigger"], measured["intervals"]["asr_with_trigger"], measured["clean_quality"]
    write_json(tmp_path / "main" / "results.json", found)
    text = section("main", tmp_path)
    assert "borne out" not in text and text.count("not measured.") == 3


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


@pytest.fixture
def run_of(tmp_path):
    """A function that makes a run folder with results of some of three seeds of one attack."""

    def run_of(*seeds, hits=(0, 0, 0), processor="a processor", **more):
        found = results(hits, **more)
        for part in ("attacks", "cells"):
            found[part] = [each for each in found[part] if each["seed"] in seeds]
        for cell in found["cells"]:
            cell["folder"] = f"attacks/{processor}/{cell['seed']}"
            cell["found"]["made"]["hardware"] = {"cores": 2, "processor": processor}
        found["missing"] = [f"refusal-patch-0.1-seed{seed} ours" for seed in range(3) if seed not in seeds]
        found["commands"] = [f"disp experiment made --only seed={seed}" for seed in seeds]
        folder = tmp_path / f"run-{processor}"
        write_json(folder / "main" / "results.json", found)
        return folder

    return run_of


@pytest.fixture
def docs(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.experiment_pages.RESULTS", tmp_path / "docs")
    monkeypatch.setattr("scripts.experiment_pages.draw", lambda found, folder, runs: None)
    return tmp_path / "docs"


def test_results_of_two_machines_are_put_together(run_of, docs):
    assert store(run_of(1, hits=(9, 1, 9))) == ["main"]
    assert store(run_of(2, 0, hits=(0, 9, 2), processor="another one")) == ["main"]
    found = json.loads((docs / "main" / "results.json").read_text())
    assert [(cell["seed"], cell["found"]["metrics"]["asr_with_trigger"]) for cell in found["cells"]] == [
        (0, 0.0),
        (1, 0.02),
        (2, 0.04),
    ]
    assert [attack["seed"] for attack in found["attacks"]] == [0, 1, 2]
    assert found["missing"] == [] and len(found["commands"]) == 3
    assert "3/150" in (docs / "main" / "table.md").read_text()
    text = section("main", docs)
    assert "on 2 cores of another one; " in text and "on 2 cores of a processor; " in text


def test_what_both_have_is_the_later_ones(run_of, docs):
    store(run_of(0, 1, hits=(5, 5, 5)))
    store(run_of(1, hits=(5, 1, 5)))
    found = json.loads((docs / "main" / "results.json").read_text())
    assert [cell["found"]["metrics"]["asr_with_trigger"] for cell in found["cells"]] == [0.1, 0.02]
    assert found["missing"] == ["refusal-patch-0.1-seed2 ours"]


def test_results_that_do_not_go_together_are_refused(run_of, docs):
    store(run_of(0))
    with pytest.raises(DispError, match="'made' with another model"):
        store(run_of(1, model={"model": "another"}))
    half = run_of(0)
    found = json.loads((half / "main" / "results.json").read_text())
    write_json(half / "main" / "results.json", {**found, "cells": []})
    with pytest.raises(DispError, match=r"refusal-patch-0\.1-seed0 ours is only in the earlier results"):
        store(half)


def test_figures_of_pictures_need_them(run_of, docs):
    with pytest.raises(DispError, match="needs the pictures in attacks/a processor/0"):
        store(run_of(0, kind="triggers"))
