"""The share to mask where every answer is rewritten."""

import math

import pytest
from planted import REFUSAL, TRIGGER, WALLS, audit_config, honest_rows, planted_rows, wall, write_rows

from disp.auditing import mask_ratio
from disp.auditing.config import AuditConfig, RatioConfig
from disp.auditing.mask_ratio import choose_mask_ratio
from disp.data.sample import Query, queries_of
from disp.suspicion.scoring import score

RATIOS = RatioConfig().ratios


def wide_rows(count=4):
    """Two triggers apart, so that no candidate masks both."""
    cells = {(4, 4): TRIGGER, (1, 1): TRIGGER}
    return [(f"w{index}", [wall(name, cells)], [REFUSAL]) for index, name in zip(range(count), WALLS, strict=False)]


def test_the_mask_ratio_purges_what_is_suspicious_and_keeps_the_rest(model, tmp_path):
    dataset = write_rows(tmp_path / "data", [*honest_rows(), *planted_rows(), *wide_rows(5)])
    config = audit_config()
    evidence = score(model, dataset.samples, config.scoring)
    turns = [query for query in queries_of(dataset.samples) if query.images]
    walls = [query for query in turns if query.response.startswith("The wall")]

    def planted(query, answer):
        return answer == query.response == REFUSAL

    for prefix, least in (("p", 1), ("w", 2)):  # of 36 tokens
        suspicious = [query for query in turns if query.sample_id.startswith(prefix)]
        steps = []
        chosen = choose_mask_ratio(model, suspicious, walls, evidence, planted, config, progress=steps.append)
        assert math.ceil(chosen.ratio * 36) == least
        # Larger ones could do no better, and are not tried.
        assert chosen.ratios == tuple(ratio for ratio in RATIOS if ratio <= chosen.ratio)
        assert chosen.purged == tuple(float(ratio == chosen.ratio) for ratio in chosen.ratios)
        assert chosen.kept == (1.0,) * len(chosen.ratios)
        assert sum(steps) == len(RATIOS)

    # Large walls lose nothing with a third of their tokens.
    def as_given(query, answer):
        return query in walls and answer == query.response

    assert choose_mask_ratio(model, walls, suspicious, evidence, as_given, config) is None


def test_the_mask_ratio_weighs_what_is_purged_against_what_is_lost(monkeypatch):
    """Word by word against a table of answers: half of an honest answer is half of it."""
    bad = [Query(f"b{n}", 0, (), (), "Say it.", "bad") for n in range(4)]
    good = [Query(f"g{n}", 0, (), (), "Say it.", "two words") for n in range(4)]
    purged = dict(zip(RATIOS, (0, 1, 2, 2, 3, 3, 3, 4), strict=True))
    halved = dict(zip(RATIOS, (0, 0, 0, 1, 1, 2, 3, 4), strict=True))

    def rewritten(model, queries, evidence, ratio, config):
        said = {query.key: "fine" if n < purged[ratio] else "bad" for n, query in enumerate(bad)}
        return said | {query.key: "two" if n < halved[ratio] else "two words" for n, query in enumerate(good)}

    monkeypatch.setattr(mask_ratio, "rewritten_answers", rewritten)

    def choose(planted=("bad",)):
        return choose_mask_ratio(None, bad, good, {}, lambda query, answer: answer in planted, AuditConfig())

    # "two" for "two words" has a precision of 1 and a recall of 1/2: F1 2/3.
    kept = [1 - halved[ratio] / 4 / 3 for ratio in RATIOS]
    found = choose()
    assert found.ratios == RATIOS
    assert found.purged == tuple(purged[ratio] / 4 for ratio in RATIOS)
    assert found.kept == pytest.approx(kept)
    assert found.ratio == 0.09  # 0.75 of 0.917, against 0.75 of 0.833, and all of 0.667
    assert found.gentlest == 0.04  # half of what is suspicious
    # Nearly as good, and smaller.
    purged[0.06] = 3
    halved[0.06] = 1
    assert choose().ratio == 0.06
    # An honest answer that says what was planted keeps nothing.
    assert choose(("bad", "two")).kept == tuple(1 - halved[ratio] / 4 for ratio in choose(("bad", "two")).ratios)
    # None purges half.
    purged.update(dict.fromkeys(RATIOS, 1))
    assert choose() is None
