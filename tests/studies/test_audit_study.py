"""The tables of the studies, and the one that needs no model."""

import pytest
import torch

from disp.data.sample import image_size
from studies import pattern_study
from studies.audit_study import likelihood_gap
from studies.study_table import best_ratio, study_tables

PLANTED = {
    "name": "refusal-patch-0.02",
    "target": "refusal",
    "trigger": "patch",
    "rate": 0.02,
    "asr_with_trigger": 0.981,
    "verdict": "poisoned",
    "precision": 1.0,
    "recall": 0.9,
    "estimated_rate": 0.018,
    "phrase_recovered": True,
    "localised": None,
    "mask_ratio": 0.04,
    "rewriting_by_ratio": {"0.02": [0.5, 1.0], "0.04": [0.95, 0.98], "0.06": [1.0, 0.94], "0.2": [1.0, 0.4]},
    **{
        f"auroc_{name}": value
        for name, value in (
            ("audit", 0.9987),
            ("suspicion", 0.9912),
            ("gap_top_0.03", 0.8),
            ("gap_top_0.06", 0.9),
            ("gap_random_0.06", 0.5),
            ("concentration", 0.6),
        )
    },
}
CLEAN = {"kind": "mixed", "samples": 200, "verdict": "no evidence"}


def test_the_best_ratio_purges_and_keeps_and_ties_go_to_the_smaller():
    assert best_ratio(PLANTED["rewriting_by_ratio"]) == 0.04  # 0.931 against 0.94 at 0.06
    assert best_ratio({"0.01": [0.0, 1.0], "0.3": [0.6, 0.5]}) == 0.3


def test_every_set_is_a_line_and_nothing_measured_is_lost():
    missed = PLANTED | {"rate": 0.1, "verdict": "no evidence", "precision": None, "recall": 0.0, "mask_ratio": None}
    text = study_tables([PLANTED, missed, CLEAN, CLEAN | {"samples": 400, "verdict": "suspicious"}])
    lines = text.splitlines()
    rates = [line.split(" | ")[2] for line in lines if line.startswith("| patch | refusal")]
    assert rates == ["10%", "2%"] * 2  # the largest rate first, in both tables
    assert (
        "| patch | refusal | 2% | 98% | poisoned | 0.999 | 0.991 | 1.00 | 0.90 | 1.8% | yes | - | 0.04 / 0.04 |"
        in lines
    )
    assert (
        "| patch | refusal | 10% | 98% | no evidence | 0.999 | 0.991 | - | 0.00 | 1.8% | yes | - | - / 0.04 |" in lines
    )
    assert "| mixed | 2 | 200 to 400 | 1 | 1 | 0 |" in lines
    brief = {name: value for name, value in PLANTED.items() if name != "rewriting_by_ratio" and "gap" not in name}
    assert study_tables([brief]).splitlines()[-1].endswith("| yes | - | 0.04 |")  # and no table of other scores


@pytest.mark.parametrize(("rows", "tables"), [([PLANTED], 2), ([CLEAN], 1), ([], 0)])
def test_what_was_not_run_has_no_table(rows, tables):
    assert sum(line.startswith("| --- |") for line in study_tables(rows).splitlines()) == tables


def test_the_search_without_a_model_is_measured_on_planted_and_clean_sets(tmp_path, monkeypatch):
    arguments = ["--rows", "120", "--triggers", "patch", "patch-random", "--rates", "0.1", "--clean", "1"]
    arguments += ["--targets", "refusal", "--sides", "96", "144"]
    monkeypatch.setattr("sys.argv", ["pattern_study", "--out", str(tmp_path), *arguments])
    pattern_study.main()
    rows = [line.strip("| ").split(" | ") for line in (tmp_path / "patterns.md").read_text().splitlines()]
    assert rows[0] == list(pattern_study.TITLES)
    # A patch in its corner is a piece as well, whose places are all the same.
    assert rows[2:] == [
        *(["patch", "refusal", side, "10%", "1", "1", "yes", "1.000", "1.000"] for side in ("96", "144")),
        *(["patch-random", "refusal", side, "10%", "0", "1", "yes", "1.000", "1.000"] for side in ("96", "144")),
        ["none", "mixed", "96", "0%", "0", "0", "no", "-", "-"],
    ]
    for side in (96, 144):
        pictures = [*(tmp_path / f"{side}px").rglob("*.png")]
        assert len(pictures) > 120 and {image_size(picture) for picture in pictures} == {(side, side)}


def test_gap_is_zero_when_nothing_is_masked_and_the_difference_otherwise(tiny_model64, queries):
    prefix = tiny_model64.encode(queries)
    response = torch.tensor([[10, 11, 12, 13]] * len(queries))
    nothing = torch.zeros_like(prefix.visual_mask)
    assert torch.equal(likelihood_gap(tiny_model64, prefix, response, nothing), torch.zeros(len(queries)))
    gap = likelihood_gap(tiny_model64, prefix, response, prefix.visual_mask)
    assert gap[2] == 0  # the query without a picture has nothing to mask
    assert (gap[[0, 1, 3]].abs() > 1e-4).all()
