"""What the audit finds in pictures without a model: ``python -m studies.pattern_study --out DIR``.

Two searches: for patterns at one place of all pictures, and for pieces that are copied to places of their own.

Each planted set is a combination of target, trigger, poison rate and size of the pictures; ``--clean N`` adds N clean
sets. Prints a row for each set and writes the table to ``patterns.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

from disp.attacks.targets import PRESETS as TARGETS
from disp.auditing.config import AuditConfig
from disp.auditing.finders.copies import shared_copies
from disp.auditing.finders.patterns import shared_patterns
from disp.auditing.phrases import joined, phrase_words
from disp.data.sample import Sample, image_size, open_image
from disp.evaluation.table import markdown_table
from disp.experiments.settings import SIZES, DemoConfig
from disp.files import claim, write_atomically, write_text
from studies.audit_study import (
    CLEAN_KINDS,
    RATES,
    clean_rows,
    clean_samples,
    draw_scenes,
    planted_phrase,
    planted_set,
    scenes_folder,
)

TITLES = ("trigger", "target", "side", "poisoned", "patterns", "pieces", "phrase", "precision", "recall")


def main() -> None:
    """Search planted and clean sets, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--triggers", nargs="*", default=["patch", "patch-random", "object", "blended", "sig"])
    parser.add_argument("--rates", nargs="*", type=float, default=list(RATES))
    parser.add_argument("--targets", nargs="*", default=list(SIZES), choices=list(TARGETS))
    parser.add_argument("--sides", nargs="*", type=int, default=[96], help="pixels; scenes are enlarged, then poisoned")
    parser.add_argument("--clean", type=int, default=0, help="this many clean sets besides")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    claim(options.out / "run.json", {"rows": options.rows, "seed": options.seed}, "the sets of a study")
    cells = []
    for trigger, target, rate, side in product(options.triggers, options.targets, options.rates, options.sides):
        sizes = DemoConfig(target, trigger, rate, rows=options.rows, seed=options.seed)
        out = options.out / f"{side}px"
        draw_scenes(sizes, out)
        _enlarge(scenes_folder(sizes, out), side)
        dataset, rows = planted_set(sizes, out, out / f"{target}-{trigger}-{rate:g}")
        cells.append((trigger, target, str(side), f"{rate:.0%}", *_found(dataset.samples, target, set(rows))))
        print(*cells[-1], sep=" | ", flush=True)
    for number in range(options.clean):
        kind, seed = list(CLEAN_KINDS)[number % len(CLEAN_KINDS)], options.seed + 100 + number
        samples = clean_samples(kind, clean_rows(kind, number), seed, options.out / f"clean-{number}")[0]
        cells.append(("none", kind, "96", "0%", *_found(samples, "refusal", set())))
        print(*cells[-1], sep=" | ", flush=True)
    write_text(options.out / "patterns.md", markdown_table(TITLES, cells) + "\n")


def _enlarge(folder: Path, side: int) -> None:
    """Give the scenes of a folder so many pixels a side, where they have not."""
    for file in sorted((folder / "images").glob("*.png")):
        if image_size(file) != (side, side):
            picture = open_image(file).resize((side, side))
            write_atomically(file, partial(picture.save, format="PNG"))


def _found(samples: Sequence[Sample], target: str, planted: set[str]) -> tuple[str, ...]:
    """How many of each, whether one is the planted phrase's, and precision and recall of all that have one."""
    samples = [sample for sample in samples if sample.images]
    config, answers = AuditConfig(), [joined([turn.response for turn in sample.turns]) for sample in samples]
    patterns = [shared for shared, _ in shared_patterns(samples, answers, config)]
    copies = [shared for shared, _ in shared_copies(samples, answers, config)]
    wanted = phrase_words(planted_phrase(TARGETS[target]))
    named = any(phrase_words(shared.phrase.text) == wanted for shared in (*patterns, *copies))
    flagged = {samples[index].id for shared in (*patterns, *copies) for index in shared.holders}
    hits = len(flagged & planted)
    precision = f"{hits / len(flagged):.3f}" if flagged else "-"
    recall = f"{hits / len(planted):.3f}" if planted else "-"
    return str(len(patterns)), str(len(copies)), "yes" if named else "no", precision, recall


if __name__ == "__main__":
    main()
