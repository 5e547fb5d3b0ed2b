"""Write the results in docs/experiments.md from docs/results: ``python scripts/experiment_pages.py``.

With ``--store DIR`` the results of a run folder (``disp experiment --out DIR``) are added to docs/results first; cells
that were measured in another run folder stay.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import filled, start_of

from disp.errors import DispError
from disp.experiments.plots import draw
from disp.experiments.results import merged
from disp.experiments.summary import Curve, ModelRow, curves_of, rows_of
from disp.experiments.tables import percent, table_of
from disp.files import read_json, write_json, write_text

DOCS = Path(__file__).parents[1] / "docs"
PAGE, RESULTS = DOCS / "experiments.md", DOCS / "results"
START = start_of("experiment_pages.py")
EXPERIMENTS = ("main", "mask-ratio", "poison-ratio", "ablation", "triggers", "overview")
NOT_YET = "No results are stored yet.\n"
# What the paper says: attacks succeed above 90% before and below 5% after; models keep 89% of the clean metric; masking
# 45% of the tokens suppresses the trigger at less than 2% of it.
ATTACKED, DEFENDED, KEPT, MASKED, LOST = 0.90, 0.05, 0.89, 0.45, 0.02
CONTROLS = frozenset(("random",))
# Their figures are of pictures in the cells' folders.
PICTURED = frozenset(("triggers", "overview"))


def attack_claim(results: Mapping[str, Any]) -> list[str]:
    """Whether attacks succeed before a defence."""
    rows = _measured([row for row in rows_of(results) if row.model == "backdoored"], "asr_with_trigger")
    missed = [row for row in rows if _asr(row) <= ATTACKED]
    return [_judged(f"Before a defence, ASR (w/t) is above {ATTACKED:.0%}", rows, missed, _asr)]


def defence_claim(results: Mapping[str, Any]) -> list[str]:
    """Whether attacks fail after each defence."""
    found = []
    for title, given in _by_defence(results).items():
        rows = _measured(given, "asr_with_trigger")
        missed = [row for row in rows if _asr(row) >= DEFENDED]
        found.append(_judged(f"After *{title}*, ASR (w/t) is below {DEFENDED:.0%}", rows, missed, _asr))
    return found


def quality_claim(results: Mapping[str, Any]) -> list[str]:
    """Whether each defence keeps the clean quality."""
    found = []
    for title, given in _by_defence(results).items():
        rows = _measured(given, "relative_quality")
        missed = [row for row in rows if _kept(row) < KEPT]
        found.append(_judged(f"After *{title}*, at least {KEPT:.0%} of the clean quality is left", rows, missed, _kept))
    return found


def fall_claim(results: Mapping[str, Any]) -> list[str]:
    """Whether planted answers vanish under little masking, with honest answers kept."""
    found = []
    for title in dict.fromkeys(curve.title for curve in curves_of(results)):
        curves = [curve for curve in curves_of(results) if curve.title == title]
        held = [curve for curve in curves if _is_sharp(curve)]
        told = "; ".join(f"{curve.target}, {curve.trigger}: {_where(curve)}" for curve in curves)
        claim = f"With *{title}*, ASR (w/t) falls below {DEFENDED:.0%} before {LOST:.0%} of the quality is lost"
        found.append(f"- {claim}: **{_verdict(len(held), len(curves))}** ({told}).")
    return found


CLAIMS: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "attack": attack_claim,
    "defence": defence_claim,
    "quality": quality_claim,
    "fall": fall_claim,
}


def _asr(row: ModelRow) -> float:
    return row.points["asr_with_trigger"].value


def _kept(row: ModelRow) -> float:
    return row.points["relative_quality"].value


def _measured(rows: Sequence[ModelRow], name: str) -> list[ModelRow]:
    """The rows of which this was measured; of others nothing is claimed."""
    return [row for row in rows if name in row.points]


def _by_defence(results: Mapping[str, Any]) -> dict[str, list[ModelRow]]:
    """The rows of each defence that is no control, by its title."""
    found: dict[str, list[ModelRow]] = {}
    for row in rows_of(results):
        if row.model in results["defences"] and row.model not in CONTROLS:
            found.setdefault(row.title, []).append(row)
    return found


def _judged(
    claim: str, rows: Sequence[ModelRow], missed: Sequence[ModelRow], value: Callable[[ModelRow], float]
) -> str:
    """One claim with its verdict, and where it fails."""
    if not rows:
        return f"- {claim}: not measured."
    text = f"- {claim}: **{_verdict(len(rows) - len(missed), len(rows))}**"
    named = "; ".join(f"{row.target}, {row.trigger}, {row.rate:.0%} poisoned: {percent(value(row))}" for row in missed)
    return f"{text}. Not for {named}." if missed else f"{text}."


def _verdict(held: int, count: int) -> str:
    if held == count:
        return f"borne out, {held} of {count}"
    return f"{'partly borne out' if held else 'not borne out'}, {held} of {count}"


def _is_sharp(curve: Curve) -> bool:
    points = zip(curve.ratios, curve.asr, curve.quality, strict=True)
    return any(asr.value < DEFENDED and kept.value >= 1 - LOST for ratio, asr, kept in points if ratio <= MASKED)


def _where(curve: Curve) -> str:
    """The smallest ratio at which the attack fails, and what is left of the quality there."""
    for ratio, asr, quality in zip(curve.ratios, curve.asr, curve.quality, strict=True):
        if asr.value < DEFENDED:
            return f"at ρ = {ratio:g}, with {percent(quality.value)} of the quality"
    return f"at no ρ up to {curve.ratios[-1]:g}"


def section(name: str, folder: Path = RESULTS) -> str:
    """What the page says of one experiment's results."""
    file = folder / name / "results.json"
    if not file.exists():
        return NOT_YET
    results = json.loads(file.read_text(encoding="utf-8"))
    judged = [line for claim in results["claims"] for line in CLAIMS[claim](results)]
    parts = ["What the paper claims, and what this small model shows:\n\n" + "\n".join(judged) + "\n"] if judged else []
    picture = folder / name / f"{name}.png"
    if picture.exists():
        link, drawing = f"results/{name}/{name}.png", f"results/{name}/{name}.svg"
        parts.append(f"[![{results['title']}]({link})]({drawing})\n")
    parts.append(table_of(results))
    commands = ", ".join(f"`{command}`" for command in results["commands"])
    parts.append(
        f"{commands}; {measured_where(results)}; [results.json](results/{name}/results.json) has all counts, seconds "
        "and hashes, and where each cell was measured.\n"
    )
    return "\n".join(parts)


def written(text: str) -> str:
    """The page with its results as they are stored now."""
    return filled(text, {name: f"\n{section(name)}\n" for name in EXPERIMENTS}, START)


def measured_where(results: Mapping[str, Any]) -> str:
    """Days, versions and machines of all cells."""
    found = []
    for made in (cell["found"]["made"] for cell in results["cells"]):
        machine = made["hardware"]
        where = machine.get("gpu") or f"{machine['cores']} cores of {machine['processor']}"
        found.append(f"{made['date'].split()[0]}, version {made['versions']['disp-mdlm']}, on {where}")
    return "; ".join(dict.fromkeys(found))


def store(runs: Path) -> list[str]:
    """Add the results of a run folder to docs/results; returns the names of the experiments that were there.

    Raises:
        DispError: they do not go together with what is stored (see `disp.experiments.results.merged`), or the pictures
            of a stored cell are not in the run folder.
    """
    names = [name for name in EXPERIMENTS if (runs / name / "results.json").exists()]
    for name in names:
        stored, found = RESULTS / name, read_json(runs / name / "results.json")
        if (stored / "results.json").exists():
            found = merged(read_json(stored / "results.json"), found)
        absent = [cell["folder"] for cell in found["cells"] if not (runs / cell["folder"]).exists()]
        if absent and found["kind"] in PICTURED:
            raise DispError(f"the figure of {name} needs the pictures in {absent[0]}; run that cell in {runs} as well")
        write_json(stored / "results.json", found)
        write_text(stored / "table.md", table_of(found))
        draw(found, stored, runs)
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the results in docs/experiments.md.")
    parser.add_argument("--store", type=Path, help="run folder whose results are copied to docs/results first")
    given = parser.parse_args()
    if given.store:
        print("stored:", ", ".join(store(given.store)) or "nothing")
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
