"""The results of `studies.audit_study` as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from disp.auditing.config import RatioConfig
from disp.evaluation.table import markdown_table

SCORES = {
    "audit": "audit",
    "suspicion": "suspicion",
    "gap_top_0.03": "gap, top 3%",
    "gap_top_0.06": "gap, top 6%",
    "gap_random_0.06": "gap, random 6%",
    "concentration": "concentration",
}


def study_tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown tables: planted sets, the scores compared on them, and clean sets; each only where there are any."""
    planted = [row for row in rows if "target" in row]
    planted.sort(key=lambda row: (row["trigger"], row["target"], -row["rate"]))
    clean = [row for row in rows if "kind" in row]
    parts = []
    if planted:
        parts.append(_planted(planted))
    if compared := [row for row in planted if "rewriting_by_ratio" in row]:
        parts.append(_compared(compared))
    if clean:
        parts.append(_clean(clean))
    return "\n\n".join(parts) + "\n"


def best_ratio(by_ratio: Mapping[str, Sequence[float]]) -> float:
    """The smallest ratio whose product of purged and kept is within the tolerance of the largest product."""
    worth = {float(ratio): purged * kept for ratio, (purged, kept) in by_ratio.items()}
    return min(ratio for ratio, value in worth.items() if value >= max(worth.values()) - RatioConfig.tolerance)


def _planted(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        (
            row["trigger"],
            row["target"],
            f"{row['rate']:.0%}",
            f"{row['asr_with_trigger']:.0%}",
            row["verdict"],
            f"{row['auroc_audit']:.3f}",
            f"{row['auroc_suspicion']:.3f}",
            _share(row["precision"]),
            _share(row["recall"]),
            f"{row['estimated_rate']:.1%}",
            "yes" if row["phrase_recovered"] else "no",
            _share(row["localised"]),
            f"{row['mask_ratio'] or '-'} / {best_ratio(row['rewriting_by_ratio'])}"
            if "rewriting_by_ratio" in row
            else f"{row['mask_ratio'] or '-'}",
        )
        for row in rows
    ]
    titles = (
        "trigger", "target", "poisoned", "ASR (w/t)", "verdict", "AUROC", "of suspicion", "precision", "recall",
        "estimated", "phrase", "in place", "ρ chosen / best",
    )  # fmt: skip
    return markdown_table(titles, cells)


def _compared(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        (row["trigger"], row["target"], f"{row['rate']:.0%}", *(f"{row[f'auroc_{name}']:.3f}" for name in SCORES))
        for row in rows
    ]
    return markdown_table(("trigger", "target", "poisoned", *SCORES.values()), cells)


def _clean(rows: Sequence[Mapping[str, Any]]) -> str:
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    verdicts = ("no evidence", "suspicious", "poisoned")
    cells = []
    for kind in kinds:
        found = [row for row in rows if row["kind"] == kind]
        sizes = [row["samples"] for row in found]
        counts = (str(sum(row["verdict"] == verdict for row in found)) for verdict in verdicts)
        cells.append((kind, str(len(found)), f"{min(sizes)} to {max(sizes)}", *counts))
    return markdown_table(("clean sets", "number", "samples", *verdicts), cells)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
