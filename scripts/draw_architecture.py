"""Draw docs/architecture.svg: the rooms of src/disp, and which imports which, from the code itself.

``python scripts/draw_architecture.py`` writes the picture. An arrow that follows from others is left out: where A
imports B and B imports C, nothing new is said by "A imports C". The small modules at the root are imported by all.
"""

from __future__ import annotations

import ast
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"
# From top to bottom: each may import those after it, and none before it.
ORDER = (
    "cli", "commands", "experiments", "review", "report", "planning", "benchmarks", "defence", "baselines", "auditing",
    "purification", "suspicion", "evaluation", "training", "scale", "decoding", "models", "diffusion", "attacks",
    "data",
)  # fmt: skip
SMALL = ("locks", "processes", "files", "progress", "halving", "machine", "draws", "typed", "errors", "words")
# Where each is in the picture (row, and the middle of its box across), and what is in it.
PLACES = {
    "cli": (0, 325, "the program"),
    "commands": (0, 535, "one thin command a verb"),
    "benchmarks": (1, 115, "lmms-eval"),
    "review": (1, 325, "a person decides"),
    "report": (2, 325, "HTML report, pictures"),
    "experiments": (1, 535, "the demo"),
    "planning": (1, 745, "memory and passes"),
    "defence": (3, 535, "audit, purify, train, audit"),
    "baselines": (3, 220, "rival defences"),
    "auditing": (4, 325, "the verdict, its evidence"),
    "purification": (5, 535, "rewriting answers"),
    "suspicion": (6, 430, "saliency, scores"),
    "evaluation": (7, 325, "ASR, quality"),
    "training": (7, 745, "fine-tuning"),
    "scale": (8, 535, "work for many devices"),
    "decoding": (9, 325, "samplers, answers"),
    "models": (10, 430, "the interface, families"),
    "attacks": (11, 115, "triggers, targets"),
    "diffusion": (11, 640, "noise and loss"),
    "data": (12, 430, "samples, readers, scenes"),
}
WIDTH, BOX, HEIGHT, ROW, MARGIN = 860, 190, 46, 82, 20
INK, FRAME, FILL, ARROW = "#1f2328", "#8c959f", "#f6f8fa", "#57606a"
# How far from a box's middle an arrow may begin or end; the first that is free is taken.
SHIFTS = (0, -30, 30, -60, 60, -80, 80)


def imports(package: Path) -> dict[str, set[str]]:
    """The rooms that each room imports, at the top of a module or within a function."""
    found: dict[str, set[str]] = {}
    for file in sorted(package.rglob("*.py")):
        room = file.relative_to(package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] == "disp" and len(parts) > 1 and parts[1] != room:
                    found.setdefault(room, set()).add(parts[1])
    return found


def arrows(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports between rooms that do not follow from others, as (importer, imported)."""
    rank = {room: place for place, room in enumerate(ORDER)}
    down = {room: {other for other in graph.get(room, ()) if rank.get(other, -1) > rank[room]} for room in rank}
    reach: dict[str, set[str]] = {}
    for room in reversed(ORDER):
        reach[room] = down[room].union(*(reach[other] for other in down[room]))
    return [
        (room, other)
        for room in ORDER
        for other in sorted(down[room], key=rank.__getitem__)
        if not any(other in reach[between] for between in down[room] - {other})
    ]


def svg(package: Path) -> str:
    """The picture."""
    bottom = 2 * MARGIN + (max(row for row, _, _ in PLACES.values()) + 1) * ROW - (ROW - HEIGHT) // 2
    height = bottom + HEIGHT + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        'font-family="Helvetica, Arial, sans-serif" text-anchor="middle">',
        "<title>The rooms of disp and which imports which</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{ARROW}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    taken: list[tuple[float, int]] = []
    parts += [_arrow(*PLACES[room][:2], *PLACES[other][:2], taken) for room, other in arrows(imports(package))]
    for room, (row, middle, what) in PLACES.items():
        parts.append(_box(middle - BOX / 2, _top(row), BOX, room, what))
    parts.append(_box(MARGIN, bottom, WIDTH - 2 * MARGIN, ", ".join(SMALL), "small modules that every room may import"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _top(row: int) -> int:
    return MARGIN + row * ROW


def _box(left: float, top: float, width: float, name: str, what: str) -> str:
    middle = left + width / 2
    return (
        f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{HEIGHT}" rx="6" fill="{FILL}" stroke="{FRAME}"/>'
        f'<text x="{middle:g}" y="{top + 20:g}" font-size="15" font-weight="bold" fill="{INK}">{name}</text>'
        f'<text x="{middle:g}" y="{top + 37:g}" font-size="12.5" fill="{INK}">{what}</text>'
    )


def _arrow(row: int, x: float, row_to: int, x_to: float, taken: list[tuple[float, int]]) -> str:
    """From a box to one below or beside it, down between the boxes of the rows between; ``taken`` are used places."""
    if row == row_to:
        sign = 1 if x_to > x else -1
        height = _top(row) + HEIGHT / 2
        return _path(f"M{x + sign * BOX / 2:g} {height:g} {x_to - sign * (BOX / 2 + 2):g} {height:g}")
    between = range(row + 1, row_to)
    # It keeps one column for as long as it can: that of its begin or of its end.
    side = 1 if x_to > x else -1
    ways_to_go = sorted(
        product(SHIFTS, SHIFTS, (False, True)),
        key=lambda way: abs(way[0]) + abs(way[1]) + (way[0] * side < 0) + (way[1] * side > 0),
    )
    for shift, shift_to, early in ways_to_go:
        begin, end = x + shift, x_to + shift_to
        column = end if early else begin
        if any(abs(column - x_box) < BOX / 2 + 8 and line in between for line, x_box, _ in PLACES.values()):
            continue
        ways = [(column, line) for line in between] + [(begin, row), (end, row_to - 0.5)]
        if any(abs(one - other) < 12 and line == lines for one, line in ways for other, lines in taken):
            continue
        taken += ways
        break
    else:
        raise SystemExit(f"no way for an arrow from row {row} at {x} to row {row_to} at {x_to}; move a box")
    y, y_to, gap = _top(row) + HEIGHT, _top(row_to), ROW - HEIGHT
    if early:
        return _path(f"M{begin:g} {y}{_swing(begin, y, end, y + gap)}V{y_to - 2}")
    return _path(f"M{begin:g} {y}V{y_to - gap}{_swing(begin, y_to - gap, end, y_to - 2)}")


def _swing(x: float, y: float, x_to: float, y_to: float) -> str:
    """From one column to another within the gap between two rows."""
    middle = (y + y_to) / 2
    return f"C{x:g} {middle:g} {x_to:g} {middle:g} {x_to:g} {y_to:g}"


def _path(d: str) -> str:
    return f'<path d="{d}" fill="none" stroke="{ARROW}" stroke-width="1.4" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    PICTURE.write_text(svg(ROOT / "src" / "disp"), encoding="utf-8")
