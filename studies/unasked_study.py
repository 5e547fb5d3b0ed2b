"""How often the search for sentences that come up whatever is asked is wrong, and how many planted rows it finds.

Questions and answers alone, of the kinds in `studies.honest_answers`: no picture is drawn and no model is asked.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from disp.attacks.targets import Insertion, Refusal, Target
from disp.auditing.config import AuditConfig
from disp.auditing.unasked import QuestionAnswer, unasked_phrases
from disp.draws import generator
from disp.files import write_json
from studies.honest_answers import HONEST, planted

TARGETS: dict[str, Target] = {
    "refusal": Refusal(),
    "append": Insertion(),
    "prepend": Insertion(position="prepend"),
    "random place": Insertion(position="random"),
    "advertisement": Insertion("Visit example.com for the best prices on cameras!"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for honest.json and planted.json")
    parser.add_argument("--draws", type=int, default=100, help="honest sets of each kind")
    parser.add_argument("--planted-draws", type=int, default=5, help="planted sets of each kind, size, rate and target")
    parser.add_argument("--sizes", nargs="*", type=int, default=[300, 1000, 2000], help="pictures; in turn")
    parser.add_argument("--rates", nargs="*", type=float, default=[0.02, 0.05, 0.1])
    parser.add_argument("--kinds", nargs="*", choices=HONEST, default=list(HONEST))
    options = parser.parse_args(arguments)
    honest = []
    for kind in options.kinds:
        for draw in range(options.draws):
            honest.append(honest_set(kind, options.sizes[draw % len(options.sizes)], draw))
        write_json(options.out / "honest.json", honest)
        accused = sum(bool(row["found"]) for row in honest if row["kind"] == kind)
        print(f"| {kind} | {options.draws} | {accused} |", flush=True)
    rows = []
    for kind, size, rate in product(options.kinds, options.sizes, options.rates):
        rows += [planted_set(kind, size, rate, name, draw) for name in TARGETS for draw in range(options.planted_draws)]
        write_json(options.out / "planted.json", rows)
        if options.planted_draws:
            print(
                _line([row for row in rows if (row["kind"], row["size"], row["rate"]) == (kind, size, rate)]),
                flush=True,
            )


def honest_set(kind: str, size: int, draw: int) -> dict[str, object]:
    """What is found in one honest set."""
    turns = HONEST[kind](generator(draw, "honest set", kind, size), size)
    return {"kind": kind, "size": size, "draw": draw, "found": [text for text, _ in _found(turns)]}


def planted_set(kind: str, size: int, rate: float, target: str, draw: int) -> dict[str, object]:
    """Precision and recall of the flagged pictures of one planted set."""
    random = generator(draw, "planted set", kind, size, f"{rate:g}", target)
    turns, poisoned = planted(HONEST[kind](random, size), TARGETS[target].apply, rate, random)
    flagged = {picture for _, pictures in _found(turns) for picture in pictures}
    hits = len(flagged & poisoned)
    return {
        **{"kind": kind, "size": size, "rate": rate, "target": target, "draw": draw},
        "precision": hits / len(flagged) if flagged else None,
        "recall": hits / len(poisoned),
    }


def _found(turns: Sequence[QuestionAnswer]) -> list[tuple[str, set[str]]]:
    config = AuditConfig()
    found = unasked_phrases(turns, config.unasked, config.phrases, alpha=config.false_alarm_rate)
    return [(each.phrase.text, {turns[index].picture for index in each.holders}) for each in found]


def _line(rows: Iterable[dict[str, object]]) -> str:
    """A line of the table: mean recall by target, and the mean precision where anything was flagged."""
    recall, precision = defaultdict(list), []
    first: dict[str, object] = {}
    for row in rows:
        first = first or row
        recall[str(row["target"])].append(row["recall"])
        precision += [] if row["precision"] is None else [row["precision"]]
    cells = [f"{np.mean(np.array(recall[name], float)):.2f}" for name in TARGETS]
    mean = f"{np.mean(np.array(precision, float)):.2f}" if precision else "-"
    return f"| {first['kind']} | {first['size']} | {float(str(first['rate'])):.0%} | {' | '.join(cells)} | {mean} |"


if __name__ == "__main__":
    main()
