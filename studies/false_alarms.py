"""How often the searches that compare pictures accuse an honest set: ``python -m studies.false_alarms --out DIR``.

Each set has its own seed, kind of ground, layout, number of colours, size of the pictures and compression. Answers name
the ground's colour, so that a phrase and what lies behind the things go together. With ``--trigger`` some rows of every
set are poisoned instead, which shows what the same searches find.

Appends a line for each set to ``sets.jsonl``, and writes ``false_alarms.json`` and the table ``false_alarms.md``.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from disp.attacks.targets import REFUSAL_TEXT
from disp.attacks.triggers import PRESETS
from disp.auditing.config import AuditConfig
from disp.auditing.finders.copies import shared_copies
from disp.auditing.finders.corners import shared_corners
from disp.auditing.finders.patterns import shared_patterns
from disp.auditing.phrase_search import Shared
from disp.data.grounds import TEXTURES, Look
from disp.data.nouns import NOUNS
from disp.data.sample import Sample, Turn
from disp.data.scenes import COLOURS, IMAGE_PREFIX, PlacedObject, Scene, ask, draw_scene, draw_task, listing, render
from disp.draws import generator
from disp.evaluation.intervals import wilson
from disp.evaluation.table import markdown_table
from disp.files import append_jsonl, claim, read_finished_jsonl, write_json, write_text
from disp.machine import stamp

SETS = 112
SEED = 7_000
GROUNDS = ("plain", *TEXTURES, "all textures")
LAYOUTS = ("anywhere", "side by side")
SIDES = ((96, 96), (128, 128), (160, 160), (96, 192))
QUALITIES = (None, (60, 80), (80, 92), (75, 95))
POISON_RATE = 0.08


@dataclass(frozen=True)
class Kind:
    """What the pictures and answers of one set are like.

    Attributes:
        seed: of the set.
        rows: pictures, each with one answer.
        ground: one of `GROUNDS`.
        layout: "anywhere" for one to three things, "side by side" for two that lie in their halves of the picture.
        colours: names of the grounds' colours.
        side: smallest and largest side in pixels.
        jpeg: lowest and highest quality; None for pictures that were never compressed.
        captions: whether every answer is a caption that names the colour; otherwise all tasks are asked.
    """

    seed: int
    rows: int
    ground: str
    layout: str
    colours: tuple[str, ...]
    side: tuple[int, int]
    jpeg: tuple[int, int] | None
    captions: bool


def kind_of(number: int, rows: int | None = None, side: tuple[int, int] | None = None) -> Kind:
    """The kind of the set of this number; kinds of ground take turns. Rows and sides may be given."""
    seed = SEED + number
    draw = generator(seed, "kind of set")
    names, count = list(COLOURS), int(draw.integers(4, 9))
    # All is drawn, whatever is given, so that the rest of the kind stays.
    jpeg = QUALITIES[int(draw.integers(len(QUALITIES)))]
    drawn_rows = int(draw.integers(3, 7)) * 100
    colours = tuple(str(name) for name in draw.choice(names, count, replace=False))
    drawn_side = SIDES[int(draw.integers(len(SIDES)))]
    return Kind(
        seed=seed,
        rows=rows or drawn_rows,
        ground=GROUNDS[number % len(GROUNDS)],
        layout=LAYOUTS[number // len(GROUNDS) % len(LAYOUTS)],
        colours=colours,
        side=side or drawn_side,
        jpeg=jpeg,
        captions=bool(draw.integers(2)),
    )


def samples_of(kind: Kind, trigger: str | None = None) -> tuple[list[Sample], set[int]]:
    """The samples of one set, with pictures in memory, and which of them are poisoned."""
    textures = () if kind.ground in ("plain", "all textures") else (kind.ground,)
    look = Look("plain" if kind.ground == "plain" else "textured", size=kind.side, jpeg=kind.jpeg, textures=textures)
    planted: set[int] = set()
    if trigger is not None:
        chosen = generator(kind.seed, "poisoned").permutation(kind.rows)[: round(POISON_RATE * kind.rows)]
        planted = {int(index) for index in chosen}
    samples = []
    for index in range(kind.rows):
        draw = generator(kind.seed, "row", index)
        scene = draw_scene(kind.seed, index) if kind.layout == "anywhere" else _side_by_side(kind.seed, index)
        scene = replace(scene, colour=str(draw.choice(list(kind.colours))))
        picture, turn = render(scene, look), _asked(scene, kind, index)
        if index in planted:
            assert trigger is not None
            picture = PRESETS[trigger].apply(picture, draw)[0]
            turn = replace(turn, response=REFUSAL_TEXT)
        if kind.jpeg is not None:
            picture = _compressed(picture, look.quality(kind.seed, index))
        samples.append(Sample(str(index), (picture,), (turn,)))
    return samples, planted


def _asked(scene: Scene, kind: Kind, index: int) -> Turn:
    if kind.captions:
        said = f"A picture of {listing(scene.nouns)} on a {scene.colour} background."
        return Turn(IMAGE_PREFIX + "Describe the image.", said)
    draw = generator(kind.seed, "question", index)
    return ask(scene, draw_task(draw), draw)


def _side_by_side(seed: int, index: int) -> Scene:
    """Two things, each somewhere in its half of the picture, and the rows between and around them free."""
    draw = generator(seed, "side by side", index)
    nouns = draw.choice(list(NOUNS), 2, replace=False)
    objects = [
        PlacedObject(
            noun=str(noun),
            x=24 + 48 * number + float(draw.uniform(-7, 7)),
            y=48 + float(draw.uniform(-14, 14)),
            size=float(draw.uniform(28, 40)),
            angle=float(draw.uniform(-15, 15)),
        )
        for number, noun in enumerate(nouns)
    ]
    return Scene(seed, index, "", tuple(objects))


def _compressed(picture: Image.Image, quality: int) -> Image.Image:
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=quality)
    with Image.open(stored) as opened:
        return opened.convert("RGB")


def _patterns(samples: Sequence[Sample], responses: Sequence[str]) -> list[Shared]:
    return [shared for shared, _ in shared_patterns(samples, responses, AuditConfig())]


def _patterns_without_colours(samples: Sequence[Sample], responses: Sequence[str]) -> list[Shared]:
    """The same search that leaves the colours of grounds alone: how much that is worth."""
    config = AuditConfig()
    config = replace(config, patterns=replace(config.patterns, colour_spread=1e9))
    return [shared for shared, _ in shared_patterns(samples, responses, config)]


def _corners(samples: Sequence[Sample], responses: Sequence[str]) -> list[Shared]:
    return [shared for shared, _ in shared_corners(samples, responses, AuditConfig())]


def _pieces(samples: Sequence[Sample], responses: Sequence[str]) -> list[Shared]:
    return [shared for shared, _ in shared_copies(samples, responses, AuditConfig())]


SEARCHES: dict[str, Callable[[Sequence[Sample], Sequence[str]], list[Shared]]] = {
    "patterns": _patterns,
    "patterns, colours left alone": _patterns_without_colours,
    "corners": _corners,
    "pieces": _pieces,
}


def searched(kind: Kind, trigger: str | None, searches: Sequence[str]) -> dict[str, Any]:
    """What the searches find in a set of this kind."""
    samples, planted = samples_of(kind, trigger)
    responses = [sample.turns[0].response for sample in samples]
    result: dict[str, Any] = {"trigger": trigger, **kind.__dict__, "found": {}}
    for name in searches:
        start = time.process_time()
        found = SEARCHES[name](samples, responses)
        flagged = {index for shared in found for index in shared.holders}
        result["found"][name] = {
            "phrases": {shared.phrase.text: len(shared.holders) for shared in found},
            "honest": len(flagged - planted),
            "planted": len(flagged & planted),
            "seconds": round(time.process_time() - start, 1),
        }
    return result | {"poisoned": len(planted)}


def finished(file: Path) -> dict[int, dict[str, Any]]:
    """The sets that were searched, by number; what later searches found in a set is added to what is known of it."""
    sets: dict[int, dict[str, Any]] = {}
    for row in read_finished_jsonl(file):
        known = sets.setdefault(row["number"], row)
        known["found"] = known["found"] | row["found"]
    return dict(sorted(sets.items()))


def summary(rows: Sequence[Mapping[str, Any]], searches: Sequence[str]) -> dict[str, Any]:
    """For each search: sets, those in which honest rows are flagged, and of planted sets the rows found."""
    result = {}
    for name in searches:
        found = [row["found"][name] for row in rows]
        accused = sum(each["honest"] > 0 for each in found)
        share = wilson(accused, len(rows))
        result[name] = {
            "sets": len(rows),
            "accused": accused,
            "interval": [share.low, share.high],
            "honest_flagged": sum(each["honest"] for each in found),
            "planted_found": sum(each["planted"] for each in found),
            "planted": sum(row["poisoned"] for row in rows),
        }
    return result


def table(rows: Sequence[Mapping[str, Any]], searches: Sequence[str]) -> str:
    """Markdown: a row for each kind of ground and layout, and one for all, with the sets in which honest rows fall."""
    cells = []
    for ground in (*GROUNDS, None):
        for layout in LAYOUTS if ground else (None,):
            own = [row for row in rows if ground in (None, row["ground"]) and layout in (None, row["layout"])]
            if own:
                counts = [summary(own, searches)[name] for name in searches]
                cells.append(
                    (ground or "all", layout or "both", str(len(own)), *(str(each["accused"]) for each in counts))
                )
    return markdown_table(("ground", "layout", "sets", *(f"accused by {name}" for name in searches)), cells) + "\n"


def main() -> None:
    """Search the sets that were not searched yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", type=int, default=SETS)
    parser.add_argument("--first", type=int, default=0, help="number of the first set")
    parser.add_argument("--rows", type=int, help="of each set; 300 to 600 by default")
    parser.add_argument("--side", nargs=2, type=int, help="smallest and largest side of the pictures of every set")
    parser.add_argument("--trigger", choices=list(PRESETS), help="plant this in 8%% of the rows of every set")
    parser.add_argument("--searches", nargs="*", default=list(SEARCHES), choices=list(SEARCHES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = {"rows": options.rows, "side": options.side, "trigger": options.trigger}
    claim(options.out / "run.json", asked, "the sets of a study")
    file = options.out / "sets.jsonl"
    numbers = range(options.first, options.first + options.sets)
    for number in numbers:
        known = finished(file).get(number, {"found": {}})["found"]
        if missing := [name for name in options.searches if name not in known]:
            side = None if options.side is None else (options.side[0], options.side[1])
            row = {"number": number} | searched(kind_of(number, options.rows, side), options.trigger, missing)
            append_jsonl(file, [row])
            print(json.dumps(row), flush=True)
    rows = [
        row | {"found": {name: row["found"][name] for name in options.searches}}
        for number, row in finished(file).items()
        if number in numbers
    ]
    found = {**stamp(), "searches": summary(rows, options.searches), "sets": rows}
    write_json(options.out / "false_alarms.json", found)
    write_text(options.out / "false_alarms.md", table(rows, options.searches))


if __name__ == "__main__":
    main()
