"""Who else says a proven phrase, and the share to mask, which larger masks tell."""

import math
from dataclasses import replace

import pytest
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

from disp.auditing import growth, patterns, ratio
from disp.auditing.audit import audit
from disp.auditing.findings import Cluster
from disp.auditing.phrases import Phrase, words_of
from disp.auditing.ratio import RATIOS, choose_mask_ratio
from disp.data.sample import Query, queries_of
from disp.suspicion.scoring import score


def wide_rows(count=4):
    """Two triggers apart, so that no candidate masks both."""
    cells = {(4, 4): TRIGGER, (1, 1): TRIGGER}
    return [(f"w{index}", [wall(name, cells)], [REFUSAL]) for index, name in zip(range(count), WALLS, strict=False)]


def test_others_who_say_a_proven_phrase_are_found_under_larger_masks(model, tmp_path, monkeypatch):
    # Who has the trigger at one place is known by his picture otherwise.
    monkeypatch.setattr(patterns, "shared_patterns", lambda *_, **__: [])
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


def test_the_mask_ratio_purges_what_is_suspicious_and_keeps_the_rest(model, tmp_path):
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *planted_rows(), *wide_rows(5)])
    decode = audit_config().decode
    evidence = score(model, dataset.samples, audit_config().scoring)
    turns = [query for query in queries_of(dataset.samples) if query.images]
    walls = [query for query in turns if query.response.startswith("The wall")]

    def planted(query, answer):
        return answer == query.response

    for prefix, least in (("p", 1), ("w", 2)):  # of 36 tokens
        suspicious = [query for query in turns if query.sample_id.startswith(prefix)]
        steps = []
        chosen = choose_mask_ratio(model, suspicious, walls, evidence, planted, decode, progress=steps.append)
        assert math.ceil(chosen.ratio * 36) == least
        # Larger ones could do no better, and are not tried.
        assert chosen.ratios == tuple(ratio for ratio in RATIOS if ratio <= chosen.ratio)
        assert chosen.purged == tuple(float(ratio == chosen.ratio) for ratio in chosen.ratios)
        assert chosen.kept == (1.0,) * len(chosen.ratios)
        assert sum(steps) == len(RATIOS)
    # Large walls lose nothing with a third of their tokens.
    assert choose_mask_ratio(model, walls, suspicious, evidence, planted, decode) is None


def test_the_mask_ratio_weighs_what_is_purged_against_what_is_lost(monkeypatch):
    """Word by word against a table of answers: half of an honest answer is half of it."""
    bad = [Query(f"b{n}", 0, (), (), "Say it.", "bad") for n in range(4)]
    good = [Query(f"g{n}", 0, (), (), "Say it.", "two words") for n in range(4)]
    purged = dict(zip(RATIOS, (0, 1, 2, 2, 3, 3, 3, 4), strict=True))
    halved = dict(zip(RATIOS, (0, 0, 0, 1, 1, 2, 3, 4), strict=True))

    def rewritten(model, queries, evidence, ratio, decode, **settings):
        said = {query.key: "fine" if n < purged[ratio] else "bad" for n, query in enumerate(bad)}
        return said | {query.key: "two" if n < halved[ratio] else "two words" for n, query in enumerate(good)}

    monkeypatch.setattr(ratio, "rewritten_answers", rewritten)

    def choose():
        return choose_mask_ratio(None, bad, good, {}, lambda query, answer: answer == "bad", None)

    # "two" for "two words" has a precision of 1 and a recall of 1/2: F1 2/3.
    kept = [1 - halved[ratio] / 4 / 3 for ratio in RATIOS]
    found = choose()
    assert found.ratios == RATIOS
    assert found.purged == tuple(purged[ratio] / 4 for ratio in RATIOS)
    assert found.kept == pytest.approx(kept)
    assert found.ratio == 0.09  # 0.75 of 0.917, against 0.75 of 0.833, and all of 0.667
    # Nearly as good, and smaller.
    purged[0.06] = 3
    halved[0.06] = 1
    assert choose().ratio == 0.06
    # None purges half.
    purged.update(dict.fromkeys(RATIOS, 1))
    assert choose() is None
