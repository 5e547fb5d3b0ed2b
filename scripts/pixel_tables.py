"""Write the tables of docs/results.md that are of the searches in pictures alone, from docs/results/pixels.

    python scripts/pixel_tables.py [--check]

With --check nothing is written, and the exit status is 1 where the page is out of date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import filled, start_of

from disp.evaluation.intervals import wilson
from disp.evaluation.table import markdown_table

DOCS = Path(__file__).parents[1] / "docs"
PAGE, RESULTS = DOCS / "results.md", DOCS / "results" / "pixels"
START = start_of("pixel_tables.py")
# What `studies.false_alarms` wrote, and what `studies.corner_study` did.
ALARMS = ("false-alarms.json", "false-alarms-more-rows.json", "false-alarms-pieces.json")
CORNERS = "corners.json"
SEARCHES = ("patterns", "corners")

Sets = Sequence[Mapping[str, Any]]


def tables(results: Path = RESULTS) -> dict[str, str]:
    """The page's tables by name, of what a folder of results holds."""
    alarms = [json.loads((results / name).read_text(encoding="utf-8")) for name in ALARMS]
    corners: Sets = json.loads((results / CORNERS).read_text(encoding="utf-8"))["sets"]
    return {
        "false alarms": _false_alarms([found["sets"] for found in alarms]),
        "corners, planted": _planted([each for each in corners if "trigger" in each]),
    }


def _false_alarms(files: Sequence[Sets]) -> str:
    cells = []
    for sets in files:
        for search in sets[0]["found"]:
            for layout in ("anywhere", "side by side", None):
                own = [each for each in sets if layout in (None, each["layout"])]
                accused = sum(each["found"][search]["honest"] > 0 for each in own)
                interval = wilson(accused, len(own))
                rows = sorted({each["rows"] for each in own})
                said = f"{rows[0]} to {rows[-1]}" if len(rows) > 1 else str(rows[0])
                share = f"{interval.low:.1%} to {interval.high:.1%}"
                cells.append((search, layout or "both", str(len(own)), said, str(accused), share))
    return markdown_table(("search", "layout", "sets", "rows", "accused", "95% interval"), cells) + "\n"


def _planted(sets: Sets) -> str:
    cells = []
    for each in sets:
        found = [each["found"][name] for name in SEARCHES]
        recalls = (f"{one['planted'] / each['planted']:.3f}" for one in found)
        wrong = sum(one["honest"] for one in found)
        told = (each["sizes"], str(each["seed"]), each["trigger"], each["target"])
        quality = f"{each['jpeg'][0]} to {each['jpeg'][1]}"
        cells.append((*told, quality, f"{each['planted']} of {each['rows']}", *recalls, str(wrong)))
    titles = ("sides", "seed", "trigger, in pixels", "target", "JPEG", "poisoned")
    return markdown_table((*titles, "patterns: recall", "corners: recall", "wrong"), cells) + "\n"


def written(text: str) -> str:
    """The page with its tables as they are now."""
    return filled(text, tables(), START)


def main() -> int:
    """Write or check the page."""
    before = PAGE.read_text(encoding="utf-8")
    after = written(before)
    if "--check" in sys.argv:
        return int(after != before)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
