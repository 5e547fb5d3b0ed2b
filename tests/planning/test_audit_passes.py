"""Planned passes of an audit against counted ones, where an answer takes as many steps as it has slots."""

from __future__ import annotations

from dataclasses import replace

from planted import (
    GRID,
    LENGTH,
    REFUSAL,
    TRIGGER,
    WALLS,
    Rows,
    audit_config,
    honest_rows,
    planted_model,
    wall,
    write_rows,
)
from references.planning import check, counting

from disp.auditing.audit import audit
from disp.auditing.mask_ratio import choose_mask_ratio
from disp.data.dataset import Dataset
from disp.data.sample import queries_of
from disp.decoding.samplers import decode_config
from disp.planning.passes import PlannedTurn, audit_passes, ratio_passes
from disp.suspicion.scoring import score


def slow_config(**changes):
    """Answers in as many steps as slots, and little else to do."""
    decode = decode_config(LENGTH, LENGTH)
    config = audit_config(decode=decode, donors=3, controls=3, recipients=2, false_alarm_rate=0.1, **changes)
    return replace(config, scoring=replace(config.scoring, mask_ratio=0.12))


def wide_rows(count: int = 8) -> Rows:
    """Walls with a trigger of two cells, which the smallest masks do not cover."""
    rows = []
    for index in range(count):
        cells = {(4, 3): TRIGGER, (4, 4): TRIGGER}
        rows.append((f"p{index}", [wall(list(WALLS)[index % len(WALLS)], cells)], [REFUSAL]))
    return rows


def asked_of(rows: Dataset) -> list[PlannedTurn]:
    return [PlannedTurn(query.turn, GRID**2 * len(query.images)) for query in queries_of(rows.samples)]


def test_audit_that_looks_long_for_a_mask_ratio(tmp_path):
    model, config = planted_model(), slow_config()
    rows = write_rows(tmp_path / "data", [*honest_rows(), *wide_rows()])
    with counting(model) as counts:
        found = audit(model, rows, config, tmp_path / "audit")
    assert found.ratio is not None
    check(audit_passes(asked_of(rows), config), counts)


def test_choosing_a_mask_ratio_that_nothing_ends_early(tmp_path):
    model, config = planted_model(), slow_config()
    rows = write_rows(tmp_path / "data", [*honest_rows(32), *wide_rows()])
    evidence = score(model, rows.samples, config.scoring)
    queries = [query for query in queries_of(rows.samples) if query.images]
    planted = [query for query in queries if query.response == REFUSAL]
    others = [query for query in queries if query.response != REFUSAL]
    with counting(model) as counts:
        # No answer loses its phrase, so that all ratios are tried.
        chosen = choose_mask_ratio(model, planted, others, evidence, lambda query, answer: query in planted, config)
    assert chosen is None
    planned = ratio_passes(asked_of(rows), config)
    assert (planned.forward, planned.rows) == (counts["forward"], counts["rows"])
    assert counts["rows"] == len(config.ratio.ratios) * LENGTH * len(queries)
