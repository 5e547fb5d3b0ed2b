"""Triggers of as many pixels in pictures of all sizes: ``python -m studies.corner_study --out DIR``.

Draws pictures like photographs, of 224 to 336 pixels, and plants squares of several looks in their corners at 20% of
them. Then the search for patterns looks through the pictures scaled to one size, and the search for pieces in corners
through them at their own size; no model is asked. ``--clean N`` adds N honest sets, some with date stamps, letterboxes,
scanned borders or watermarks on a quarter of the pictures. Prints a row for each set and writes ``corners.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from disp.attacks.targets import PRESETS as TARGETS
from disp.auditing.config import AuditConfig
from disp.auditing.finders.corners import shared_corners
from disp.auditing.finders.patterns import shared_patterns
from disp.data.sample import Sample
from disp.draws import generator
from disp.evaluation.table import markdown_table
from disp.files import write_text
from studies.photographs import Mark, date_stamp, letterbox, photographs, scan, square, watermark, write_photographs

TITLES = ("seed", "trigger", "target", "JPEG", "rows", "patterns", "recall", "corners", "recall", "wrong", "s/1,000")
BLACK, WHITE, GREY, RED = (0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 30, 40)
TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT = (0, 0), (1, 0), (0, 1), (1, 1)
TRIGGERS: dict[str, Mark] = {
    "black 20, top left": square(20, BLACK, TOP_LEFT),
    "white 20, bottom right": square(20, WHITE, BOTTOM_RIGHT),
    "grey 20, top right": square(20, GREY, TOP_RIGHT),
    "noise 16, bottom left": square(16, "noise", BOTTOM_LEFT),
    "black 8, 6 from the corner": square(8, BLACK, TOP_LEFT, 6),
    "red 64, 4 from the corner": square(64, RED, TOP_RIGHT, 4),
    "noise 48, 10 from it, 30%": square(48, "noise", BOTTOM_RIGHT, 10, 0.3),
    "white 32, 8 from it, 40%": square(32, WHITE, TOP_LEFT, 8, 0.4),
    "black 20, 30%": square(20, BLACK, TOP_LEFT, 0, 0.3),
}
HONEST: dict[str, Mark | None] = {
    "none": None,
    "date stamps": date_stamp,
    "letterboxes": letterbox,
    "scanned borders": scan,
    "watermarks": watermark,
}
# One target and one range of qualities for each trigger, in turn.
QUALITIES = ((75, 95), (75, 75), (90, 95))


def main() -> None:
    """Search planted and honest sets, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--triggers", nargs="*", default=list(TRIGGERS), choices=list(TRIGGERS))
    parser.add_argument("--share", type=float, default=0.2, help="of the rows that are poisoned")
    parser.add_argument("--clean", type=int, default=0, help="this many honest sets besides")
    options = parser.parse_args()
    cells = []
    for seed in options.seeds:
        drawn = photographs(options.rows, seed)
        for number, name in enumerate(options.triggers):
            target, qualities = list(TARGETS)[(number + seed) % len(TARGETS)], QUALITIES[number % len(QUALITIES)]
            wanted = TARGETS[target]
            able = [index for index, (_, answer) in enumerate(drawn) if wanted.applies_to(answer)]
            order = generator(seed, "corner study", name).permutation(len(able))
            rows = sorted(able[index] for index in order[: round(options.share * options.rows)].tolist())
            folder = options.out / f"{seed}-{number}"
            marks = dict.fromkeys(rows, TRIGGERS[name])
            samples = write_photographs(
                folder, drawn, seed, marks=marks, target=wanted.apply, targeted=rows, qualities=qualities
            )
            cells.append((str(seed), name, target, f"{qualities[0]}-{qualities[1]}", *_found(samples, set(rows))))
            print(*cells[-1], sep=" | ", flush=True)
    for number in range(options.clean):
        seed, name = 1000 + number, list(HONEST)[number % len(HONEST)]
        mark = HONEST[name]
        marks = {} if mark is None else dict.fromkeys(range(0, options.rows, 4), mark)
        folder = options.out / f"honest-{number}"
        samples = write_photographs(folder, photographs(options.rows, seed), seed, marks=marks)
        cells.append((str(seed), f"honest: {name}", "-", "75-95", *_found(samples, set())))
        print(*cells[-1], sep=" | ", flush=True)
    write_text(options.out / "corners.md", markdown_table(TITLES, cells) + "\n")


def _found(samples: Sequence[Sample], planted: set[int]) -> tuple[str, ...]:
    """How many are planted; findings and recall of either search, wrong rows of the second, and its time."""
    answers, told = [sample.turns[0].response for sample in samples], [str(len(planted))]
    patterns = shared_patterns(samples, answers, AuditConfig())
    start = time.process_time()
    corners = shared_corners(samples, answers, AuditConfig())
    spent = time.process_time() - start
    for found in (patterns, corners):
        flagged = {index for shared, _ in found for index in shared.holders}
        told += [str(len(found)), f"{len(flagged & planted) / len(planted):.3f}" if planted else "-"]
    return *told, str(len(flagged - planted)), f"{1000 * spent / len(samples):.1f}"


if __name__ == "__main__":
    main()
