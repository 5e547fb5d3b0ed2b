"""``table.md`` of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from disp.evaluation.table import NOT_MEASURED, markdown_table
from disp.experiments.summary import Curve, ModelRow, Point, curves_of, rows_of
from disp.report.numbers import percent

COLUMNS = {
    "ASR (w/t)": "asr_with_trigger",
    "ASR (w/o)": "asr_without_trigger",
    "clean quality": "clean_quality",
    "relative clean quality": "relative_quality",
    "triggered quality": "triggered_quality",
    "precision": "precision",
    "recall": "recall",
}


def table_of(results: Mapping[str, Any]) -> str:
    """The table of an experiment in Markdown, with a line on how to read it.

    Args:
        results: what ``results.json`` holds.
    """
    text: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
        "defences": _defences,
        "mask-ratio": _sweep,
        "triggers": _triggers,
        "overview": _overview,
    }
    return text[results["kind"]](results) + _missing(results)


def with_interval(point: Point | None) -> str:
    """A number with its 95% interval over seeds, or of one seed's answers; without one that has no width."""
    if point is None:
        return NOT_MEASURED
    share = point.over_seeds
    if share.low == share.high:
        return percent(share.value)
    return f"{percent(share.value)} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def counted(point: Point | None) -> str:
    """All answers together: how many of how many, with the Wilson interval."""
    if point is None or point.pooled is None:
        return NOT_MEASURED
    share = point.pooled
    return f"{share.hits:.0f}/{share.count} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _defences(results: Mapping[str, Any]) -> str:
    rows = rows_of(results)
    many = len({row.rate for row in rows}) > 1
    first, *others = COLUMNS
    seeds = [point.seeds if (point := row.points.get(COLUMNS[first])) else 0 for row in rows]
    uneven = len(set(seeds)) > 1
    body = [
        [
            row.target,
            row.trigger,
            *([percent(row.rate)] if many else []),
            row.title,
            *([str(count)] if uneven else []),
            _ratios(row),
            with_interval(row.points.get(COLUMNS[first])),
            counted(row.points.get(COLUMNS[first])),
            *(with_interval(row.points.get(COLUMNS[name])) for name in others),
        ]
        for row, count in zip(rows, seeds, strict=True)
    ]
    titles = ["target", "trigger", *(["poisoned"] if many else []), "model"]
    numeric = [*(["seeds"] if uneven else []), "masked", first, f"{first}, all answers", *others]
    table = markdown_table([*titles, *numeric], body, numeric=len(numeric))
    return f"{table}\n\n{_reading(results)}\n"


def _reading(results: Mapping[str, Any]) -> str:
    seeds = sorted({each["seed"] for each in results["attacks"]})
    over = (
        f"Means over the seeds {', '.join(map(str, seeds))}; brackets are 95% intervals over seeds (Student's t), of "
        "one seed, or where seeds agree, of the answers (Wilson, or bootstrap)."
        if len(seeds) > 1
        else f"Seed {seeds[0] if seeds else '–'}; brackets are 95% intervals of its answers (Wilson, or bootstrap)."
    )
    return (
        f"{over} All answers: of all seeds together, with the Wilson interval. Relative clean quality is a share of "
        "the clean model's, which its interval takes as exact. Precision and recall are those of the rewritten rows."
    )


def _ratios(row: ModelRow) -> str:
    """The mask ratios of a row's seeds."""
    shown = sorted({percent(ratio) for ratio in row.ratios}, key=lambda each: float(each[:-1]))
    return f"{shown[0]} to {shown[-1]}" if len(shown) > 1 else (shown[0] if shown else NOT_MEASURED)


def _sweep(results: Mapping[str, Any]) -> str:
    curves = curves_of(results)
    ratios = sorted({ratio for curve in curves for ratio in curve.ratios})
    parts = []
    for title, points in (
        ("ASR (w/t) on training answers rewritten under masking", lambda curve: curve.asr),
        ("quality of honest answers under masking, as a share of that without", lambda curve: curve.quality),
    ):
        body = [[curve.target, curve.trigger, curve.title, *_along(curve, points(curve), ratios)] for curve in curves]
        head = ["target", "trigger", "ranking", *(f"ρ = {ratio:g}" for ratio in ratios)]
        parts.append(f"{title[0].upper()}{title[1:]}:\n\n{markdown_table(head, body, numeric=len(ratios))}")
    seeds = sorted({each["seed"] for each in results["attacks"]})
    reading = f"Means over the seeds {', '.join(map(str, seeds))}." if len(seeds) > 1 else f"Seed {seeds[0]}."
    return "\n\n".join(parts) + f"\n\n{reading} `results.json` has counts and intervals.\n"


def _along(curve: Curve, points: Sequence[Point], ratios: Sequence[float]) -> list[str]:
    found = dict(zip(curve.ratios, points, strict=False))
    return [percent(found[ratio].value) if ratio in found else NOT_MEASURED for ratio in ratios]


def _triggers(results: Mapping[str, Any]) -> str:
    body = [
        [each["trigger"], each["target"], found["prompt"], found["honest"], found["planted"], found["answer"]]
        for each in results["cells"]
        for found in (each["found"],)
    ]
    head = ["trigger", "target", "question", "honest answer", "planted answer", "backdoored model"]
    return markdown_table(head, body) + "\n"


def _overview(results: Mapping[str, Any]) -> str:
    parts = []
    for each in results["cells"]:
        found = each["found"]
        steps = [
            ("question", found["prompt"]),
            ("honest answer", found["honest"]),
            ("planted answer", found["planted"]),
            ("backdoored model", found["compromised"]),
            (f"rewritten, {found['masked']} of {found['tokens']} tokens masked", found["rewritten"]),
            ("recovered model", found["recovered"]),
        ]
        parts.append(markdown_table([f"{each['target']}, {each['trigger']}", "text"], steps))
    return "\n\n".join(parts) + "\n"


def _missing(results: Mapping[str, Any]) -> str:
    count = len(results["missing"])
    if not count:
        return ""
    whole = count + len(results["cells"])
    return f"\n{count} of {whole} cells are not measured yet; results.json names them.\n"
