"""Write the tables of speed in docs/benchmarks.md from docs/results/bench, and draw them where matplotlib is.

    python scripts/bench_tables.py [--check]

With --check nothing is written, and the exit status is 1 where the page is out of date.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from pages import filled, start_of

DOCS = Path(__file__).parents[1] / "docs"
PAGE, RESULTS = DOCS / "benchmarks.md", DOCS / "results" / "bench"
FILE = RESULTS / "speed-cpu.json"
START = start_of("bench_tables.py")
GROWTH = ("visual tokens", "response slots", "rows in a batch")

Rows = list[dict[str, Any]]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, or that there is none."""
    if not rows:
        return "Not in the results yet; `make bench` measures it.\n"
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def mebibytes(row: dict[str, Any]) -> str:
    """The row's peak memory."""
    return "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f} MiB"


def share(value: float | None) -> str:
    """A part in percent."""
    return "-" if value is None else f"{value:.0%}"


def tables(found: dict[str, Any]) -> dict[str, str]:
    """The page's tables by name, of what a results file holds."""
    rows: Rows = found["rows"]
    groups = {
        group: [row for row in rows if row["group"] == group] for group in dict.fromkeys(r["group"] for r in rows)
    }
    where, sizes = found["hardware"], found["config"]["sizes"]
    parts = {
        "speed, where": "\n".join(
            (
                f"Measured on {where['processor']}, {where['threads']} of {where['cores']} cores, with Python "
                f"{where['python']} and torch {where['torch']}.",
                f"The model has {sizes['layers']} layers of width {sizes['width']}, {sizes['vocabulary']} words and "
                "random weights.",
                f"A prompt is {sizes['visual']} visual tokens and {sizes['text']} others, an answer "
                f"{sizes['response']} slots.\n",
            )
        ),
        "speed, decoding": table(
            ["", "times as fast as the plain loop", "tokens as in it", "peak memory"],
            [
                [
                    row["name"],
                    f"{row['ratio']:.2f}",
                    "-" if row["same"] is None else f"{row['same']:.0%}",
                    mebibytes(row),
                ]
                for row in groups.get("decoding", [])
            ],
        ),
        "speed, saliency and training": table(
            ["", "forward passes", "peak memory"],
            [
                [row["name"], f"{row['ratio']:.2f}", mebibytes(row)]
                for row in (*groups.get("saliency", []), *groups.get("training", [])[1:])
            ],
        ),
    }
    lines = []
    for group in GROWTH:
        cells: dict[str, dict[str, dict[str, Any]]] = {}
        for row in groups.get(group, []):
            what, _, value = row["name"].rpartition(", ")
            cells.setdefault(value, {})[what] = row
        for value, each in cells.items():
            times = [
                f"{each[what]['busy'] * 1000:.0f}" if what in each else "-"
                for what in ("reference loop", "exact", "prompt kept", "saliency, K = 1")
            ]
            peak = mebibytes(each["exact"]) if "exact" in each else "-"
            lines.append([f"{value} {group}", *times, peak])
    head = ["", "plain loop, ms", "exact, ms", "prompt kept, ms", "saliency K = 1, ms", "peak memory of exact"]
    parts["speed, a step"] = table(head, lines)
    return parts


def draw(found: dict[str, Any], file: Path) -> None:
    """How a step's time grows, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "disp"  # the same drawing has the same bytes
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(GROWTH), figsize=(11, 3.4))
    for axis, group in zip(axes, GROWTH, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in found["rows"]:
            if row["group"] == group:
                what, _, value = row["name"].rpartition(", ")
                lines.setdefault(what, []).append((int(value), row["busy"]))
        for what, points in lines.items():
            axis.loglog(*zip(*points, strict=True), marker="o", label=what)
        measured = sorted({value for points in lines.values() for value, _ in points})
        axis.set_xticks(measured, labels=map(str, measured))
        axis.minorticks_off()
        axis.set_xlabel(group)
    axes[0].set_ylabel("seconds a step")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def written(text: str, found: dict[str, Any]) -> str:
    """The page with its tables as they are now."""
    return filled(text, tables(found), START)


def main() -> int:
    """Write or check the page."""
    if not FILE.is_file():
        print(f"{FILE} is not there; run make bench")
        return 1
    found = json.loads(FILE.read_text(encoding="utf-8"))
    before = PAGE.read_text(encoding="utf-8")
    after = written(before, found)
    if "--check" in sys.argv:
        return int(after != before)
    PAGE.write_text(after, encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        print("no drawing: matplotlib is not installed")
    elif {row["group"] for row in found["rows"]}.issuperset(GROWTH):
        draw(found, RESULTS / "speed-cpu.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
