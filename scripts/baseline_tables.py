"""Write the tables of docs/baselines.md from `disp.baselines.table.DEFENCES`.

    python scripts/baseline_tables.py [--check]

With --check nothing is written, and the exit status is 1 where the page is out of date.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

from pages import filled, start_of

from disp.baselines.interface import Answering, Assumptions, RivalDefence
from disp.baselines.table import DEFENCES

PAGE = Path(__file__).parents[1] / "docs" / "baselines.md"
START = start_of("baseline_tables.py")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def parameters(defence: RivalDefence) -> str:
    """Names and defaults of a defence's parameters."""
    shown = [(each.name, each.default) for each in fields(defence.config)]
    return ", ".join(f"`{name}`" if default == "" else f"`{name}={default}`" for name, default in shown) or "–"


def tables() -> dict[str, str]:
    """The page's tables by name."""
    kinds = {True: "answers", False: "filter"}
    what = [
        [f"`{name}`", kinds[isinstance(each, Answering)], each.summary, parameters(each)]
        for name, each in DEFENCES.items()
    ]
    where = [[f"`{name}`", each.source, each.port] for name, each in DEFENCES.items()]
    columns = [each.name for each in fields(Assumptions)]
    needs = [[f"`{name}`", *(getattr(each.assumes, column) for column in columns)] for name, each in DEFENCES.items()]
    return {
        "defences": table(["name", "kind", "what it does", "parameters"], what),
        "sources": table(["name", "source", "what differs here"], where),
        "assumptions": table(["name", *(column.replace("_", " ") for column in columns)], needs),
    }


def written(text: str) -> str:
    """The page with its tables as they are now."""
    return filled(text, tables(), START)


def main() -> int:
    """Write or check the page."""
    before = PAGE.read_text(encoding="utf-8")
    after = written(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            print("docs/baselines.md is out of date; run python scripts/baseline_tables.py", file=sys.stderr)
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
