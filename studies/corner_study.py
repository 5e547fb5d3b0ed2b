"""Triggers of as many pixels in the corners of pictures: ``python -m studies.corner_study --out DIR``.

Draws pictures like photographs, of 224 to 336 pixels or of the sizes that ``--sizes`` names, and plants squares of
several looks in the corners of 20% of them. Then the search for patterns looks through the pictures scaled to one size,
and the search for pieces in corners through them at their own size; no model is asked. ``--clean N`` adds N honest
sets, most of them with date stamps, letterboxes, scanned borders or watermarks on a quarter of the pictures.

Appends a line for each set to ``sets.jsonl``, so that it may be killed and started again, and writes ``corners.json``
and the tables ``corners.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from disp.attacks.targets import PRESETS as TARGETS
from disp.auditing.config import AuditConfig
from disp.auditing.finders.corners import shared_corners
from disp.auditing.finders.patterns import shared_patterns
from disp.auditing.phrase_search import Shared
from disp.data.sample import Sample
from disp.draws import generator
from disp.evaluation.table import markdown_table
from disp.files import append_jsonl, claim, read_finished_jsonl, write_json, write_text
from disp.machine import stamp
from studies.photographs import Mark, date_stamp, letterbox, photograph, scan, square, watermark, write_photographs

PLANTED = ("sides", "seed", "trigger", "target", "JPEG", "poisoned", "patterns: recall", "corners: recall", "wrong")
CLEAN = ("honest sets", "number", "accused by patterns", "accused by corners")
SEARCHES: dict[str, Callable[..., Sequence[tuple[Shared, Any]]]] = {
    "patterns": shared_patterns,
    "corners": shared_corners,
}
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
# Shortest and longest side in pixels, and how many of a hundred pictures are so.
SIZES: dict[str, Mapping[tuple[int, int], int]] = {
    "224 to 336": {(224, 336): 100},
    "224": {(224, 224): 100},
    "336": {(336, 336): 100},
    "224 or 336": {(224, 224): 50, (336, 336): 50},
    "224, 336, a few 280": {(224, 224): 60, (336, 336): 38, (280, 280): 2},
}
# One target and one range of qualities for each trigger, in turn.
QUALITIES = ((75, 95), (75, 75), (90, 95))


def planted_set(seed: int, trigger: str, sizes: str, rows: int, share: float, folder: Path) -> dict[str, Any]:
    """What the searches find where a trigger is in this share of the pictures."""
    drawn = _drawn(rows, seed, sizes)
    number = list(TRIGGERS).index(trigger)
    target, qualities = list(TARGETS)[(number + seed) % len(TARGETS)], QUALITIES[number % len(QUALITIES)]
    wanted = TARGETS[target]
    able = [index for index, (_, answer) in enumerate(drawn) if wanted.applies_to(answer)]
    order = generator(seed, "corner study", trigger).permutation(len(able))
    planted = sorted(able[index] for index in order[: round(share * rows)].tolist())
    marks = dict.fromkeys(planted, TRIGGERS[trigger])
    samples = write_photographs(
        folder, drawn, seed, marks=marks, target=wanted.apply, targeted=planted, qualities=qualities
    )
    told = {"trigger": trigger, "target": target, "jpeg": qualities, "planted": len(planted)}
    return told | {"found": _found(samples, set(planted))}


def honest_set(seed: int, name: str, sizes: str, rows: int, folder: Path) -> dict[str, Any]:
    """What the searches find where nothing is planted."""
    mark = HONEST[name]
    marks = {} if mark is None else dict.fromkeys(range(0, rows, 4), mark)
    return {"honest": name, "found": _found(write_photographs(folder, _drawn(rows, seed, sizes), seed, marks=marks))}


def tables(sets: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row for each planted set, and one for each kind of honest sets."""
    planted = [
        (
            each["sizes"],
            str(each["seed"]),
            each["trigger"],
            each["target"],
            f"{each['jpeg'][0]}-{each['jpeg'][1]}",
            f"{each['planted']} of {each['rows']}",
            *(f"{found['planted'] / each['planted']:.3f}" for found in (each["found"][name] for name in SEARCHES)),
            str(sum(each["found"][name]["honest"] for name in SEARCHES)),
        )
        for each in sets
        if "trigger" in each
    ]
    clean = []
    for name in HONEST:
        own = [each["found"] for each in sets if each.get("honest") == name]
        if own:
            accused = (str(sum(found[search]["honest"] > 0 for found in own)) for search in SEARCHES)
            clean.append((name, str(len(own)), *accused))
    parts = [markdown_table(*each) for each in ((PLANTED, planted), (CLEAN, clean)) if each[1]]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Search the planted and honest sets that were not searched yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--triggers", nargs="*", default=list(TRIGGERS), choices=list(TRIGGERS))
    parser.add_argument("--sizes", nargs="*", default=["224 to 336"], choices=list(SIZES))
    parser.add_argument("--share", type=float, default=0.2, help="of the rows that are poisoned")
    parser.add_argument("--clean", type=int, default=0, help="this many honest sets besides")
    options = parser.parse_args()
    torch.set_num_threads(1)
    claim(options.out / "run.json", {"share": options.share}, "the sets of a study")
    file = options.out / "sets.jsonl"
    done = {row["name"]: row for row in read_finished_jsonl(file)}
    for sizes in options.sizes:
        todo: list[tuple[int, str, str]] = [(s, "trigger", name) for s in options.seeds for name in options.triggers]
        todo += [(1000 + n, "honest", list(HONEST)[n % len(HONEST)]) for n in range(options.clean)]
        for seed, kind, what in todo:
            name = f"{options.rows} | {sizes} | {seed} | {what}"
            if name in done:
                continue
            # The pictures of one set are written over those of the last.
            folder = options.out / "pictures"
            if kind == "trigger":
                found = planted_set(seed, what, sizes, options.rows, options.share, folder)
            else:
                found = honest_set(seed, what, sizes, options.rows, folder)
            done[name] = {"name": name, "sizes": sizes, "seed": seed, "rows": options.rows, **found}
            append_jsonl(file, [done[name]])
            print(done[name], flush=True)
    write_json(options.out / "corners.json", {**stamp(), "sets": list(done.values())})
    write_text(options.out / "corners.md", tables(list(done.values())))


@lru_cache(maxsize=1)
def _drawn(rows: int, seed: int, sizes: str) -> list[tuple[Image.Image, str]]:
    """Pictures and answers; see `SIZES`."""
    sides, shares = list(SIZES[sizes]), list(SIZES[sizes].values())
    chosen = generator(seed, "sizes of photographs").choice(len(sides), rows, p=[share / 100 for share in shares])
    return [photograph(generator(seed, "photograph", row), sides[each]) for row, each in enumerate(chosen.tolist())]


def _found(samples: Sequence[Sample], planted: Collection[int] = ()) -> dict[str, Any]:
    """Phrases of either search, how many planted and honest rows it flags, and seconds of one core."""
    answers, told = [sample.turns[0].response for sample in samples], {}
    for name, search in SEARCHES.items():
        start = time.process_time()
        found = [shared for shared, _ in search(samples, answers, AuditConfig())]
        flagged = {index for shared in found for index in shared.holders}
        told[name] = {
            "phrases": {shared.phrase.text: len(shared.holders) for shared in found},
            "planted": len(flagged.intersection(planted)),
            "honest": len(flagged.difference(planted)),
            "seconds": round(time.process_time() - start, 1),
        }
    return told


if __name__ == "__main__":
    main()
