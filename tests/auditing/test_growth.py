"""Who else says a proven phrase, and the share to mask, which larger masks tell."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from disp.auditing import growth
from disp.auditing.audit import audit
from disp.auditing.findings import Cluster
from disp.auditing.phrases import Phrase, words_of
from disp.auditing.ratio import RATIOS, choose_mask_ratio
from disp.data.sample import queries_of
from disp.purification.scoring import score

sys.path.insert(0, str(Path(__file__).parent))
from planted import (
    PLANTED,
    REFUSAL,
    TRIGGER,
    WALLS,
    audit_config,
    evidence_rows,
    honest_rows,
    planted_rows,
    wall,
    write_rows,
)


def wide_rows(count=4):
    """Two triggers apart, so that no candidate masks both."""
    cells = {(4, 4): TRIGGER, (1, 1): TRIGGER}
    return [(f"w{index}", [wall(name, cells)], [REFUSAL]) for index, name in zip(range(count), WALLS, strict=False)]


def test_others_who_say_a_proven_phrase_are_found_under_larger_masks(model, tmp_path):
    liars = [(f"l{index}", [wall("red")], [REFUSAL]) for index in range(2)]  # no trigger in their pictures
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *planted_rows(), *wide_rows(), *liars])
    evidence = score(model, dataset.samples, audit_config().scoring)
    for key in ("w0#0", "w1#0", "w2#0", "w3#0"):  # as if no candidate had held both
        saliency = tuple(float(cell in (7, 28)) for cell in range(36))
        evidence[key] = replace(evidence[key], saliency=saliency, suspicion=0.0, best_candidate=())
    found = audit(model, dataset, audit_config(), tmp_path / "out", evidence=evidence)
    (cluster,) = found.clusters
    assert cluster.samples == PLANTED
    assert cluster.more == ("w0", "w1", "w2", "w3")
    assert found.flagged == (*PLANTED, *cluster.more)
    for key in cluster.more:
        evidence = found.evidence[f"{key}#0"]
        assert {7, 28} <= set(evidence.best_candidate)  # cells 1, 1 and 4, 4
        assert found.scores[key] == evidence.suspicion > found.threshold
    assert any(reason.startswith("4 more samples say it") for reason in found.reasons)
    written = {row["id"]: row for row in evidence_rows(tmp_path / "out")}
    assert {written[key]["cluster"] for key in cluster.more} == {0}


@pytest.mark.parametrize(
    ("phrase", "instead", "answer", "expected"),
    [
        ("fish", ("cat",), "A cat.", True),
        ("fish", ("cat",), "A dog.", False),
        ("fish", ("cat",), "A fish and a cat.", False),
        (REFUSAL, (), "A dog.", True),
        (REFUSAL, ("cat",), "A dog.", True),
    ],
)
def test_a_short_phrase_gives_way_to_what_it_misnames(phrase, instead, answer, expected):
    found = Cluster(Phrase(phrase, tuple(words_of(phrase)), (0,), 0, 0.0), ("a",), None, True, instead, None)
    assert growth._gives_way(phrase, answer, found) is expected


def test_the_mask_ratio_flips_what_is_suspicious_and_keeps_the_rest(model, tmp_path):
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *planted_rows(), *wide_rows(5)])
    evidence = score(model, dataset.samples, audit_config().scoring)
    turns = [query for query in queries_of(dataset.samples) if query.images]
    walls = [query for query in turns if query.response.startswith("The wall")]
    for prefix, least in (("p", 1), ("w", 2)):  # of 36 tokens
        suspicious = [query for query in turns if query.sample_id.startswith(prefix)]
        chosen = choose_mask_ratio(model, suspicious, walls, evidence)
        assert math.ceil(chosen.ratio * 36) == least
        assert chosen.kept == (1.0,) * len(RATIOS)
        assert chosen.flipped == tuple(float(math.ceil(ratio * 36) >= least) for ratio in RATIOS)
    # Large walls lose nothing with a third of their tokens.
    assert choose_mask_ratio(model, walls, suspicious, evidence) is None
