"""What the cells of an experiment say together: means over seeds, with intervals, for tables, plots and pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disp.evaluation.intervals import Share, mean_over_runs, wilson

METRICS = (
    "asr_with_trigger",
    "asr_with_trigger_keyword",
    "asr_with_trigger_substring",
    "asr_without_trigger",
    "clean_quality",
    "triggered_quality",
)
# Models that every attack has before any defence.
BEFORE = {"clean": "clean model", "backdoored": "backdoored model"}


@dataclass(frozen=True)
class Point:
    """One number of a table or plot.

    Attributes:
        over_seeds: the mean over seeds with its 95% interval; of one seed, or where all seeds agree, that of the
            answers.
        least: of the seeds.
        most: of the seeds.
        pooled: of all answers of all seeds together, where they are yes or no; otherwise None.
        seeds: how many there are.
    """

    over_seeds: Share
    least: float
    most: float
    pooled: Share | None
    seeds: int

    @property
    def value(self) -> float:
        """The mean."""
        return self.over_seeds.value


@dataclass(frozen=True)
class ModelRow:
    """One model under one attack, all seeds together.

    Attributes:
        target: of the attack.
        trigger: of the attack.
        rate: of the attack.
        model: a key of `BEFORE`, or the name of the defence that it came out of.
        title: the same for people.
        points: by metric; those that were not measured are left out. ``relative_quality`` is the clean quality as a
            share of the clean model's, see `_part`; ``precision`` and ``recall`` are those of the rewritten rows.
        ratios: the mask ratios of the seeds, where tokens were masked.
    """

    target: str
    trigger: str
    rate: float
    model: str
    title: str
    points: Mapping[str, Point]
    ratios: tuple[float, ...] = ()


def rows_of(results: Mapping[str, Any]) -> list[ModelRow]:
    """The rows of an experiment of the kind "defences", in its order; attacks without a finished cell are left out."""
    found = []
    for target, trigger, rate in attacks_of(results):
        attacks = _of(results["attacks"], target, trigger, rate)
        for model, title in BEFORE.items():
            measured = [(each[model], each["clean"]) for each in attacks if each[model]]
            if measured:
                found.append(ModelRow(target, trigger, rate, model, title, points=_points(measured, [])))
        clean = {each["seed"]: each["clean"] for each in attacks}
        for name, title in results["defences"].items():
            cells = [each for each in _of(results["cells"], target, trigger, rate) if each["defence"] == name]
            if cells:
                measured = [(each["found"], clean[each["seed"]]) for each in cells]
                rewriting = [each["found"]["rewriting"] for each in cells if each["found"]["rewriting"]]
                ratios = [each["found"]["mask_ratio"] for each in cells if each["found"]["mask_ratio"] is not None]
                points = _points(measured, rewriting)
                found.append(ModelRow(target, trigger, rate, name, title, points=points, ratios=tuple(ratios)))
    return found


@dataclass(frozen=True)
class Curve:
    """What one ranking does to training answers as more is masked, all seeds together.

    Attributes:
        target: of the attack.
        trigger: of the attack.
        rate: of the attack.
        title: of the ranking.
        ratios: mask ratios.
        asr: share of planted answers that still show the target, at each ratio.
        quality: quality of honest answers as a share of that with nothing masked, at each ratio.
    """

    target: str
    trigger: str
    rate: float
    title: str
    ratios: tuple[float, ...]
    asr: tuple[Point, ...]
    quality: tuple[Point, ...]


def curves_of(results: Mapping[str, Any]) -> list[Curve]:
    """The curves of an experiment of the kind "mask-ratio", in its order."""
    found = []
    for target, trigger, rate in attacks_of(results):
        for name, title in results["defences"].items():
            cells = [each for each in _of(results["cells"], target, trigger, rate) if each["defence"] == name]
            if not cells:
                continue
            ratios = tuple(cells[0]["found"]["ratios"])
            by_ratio = [[cell["found"]["by_ratio"][place] for cell in cells] for place in range(len(ratios))]
            asr = [
                point_of([each["asr_with_trigger"] for each in seeds if each["asr_with_trigger"]]) for seeds in by_ratio
            ]
            whole = [cell["found"]["by_ratio"][0]["clean_quality"] for cell in cells]
            quality = [
                point_of([_part(each["clean_quality"], first) for each, first in zip(seeds, whole, strict=True)])
                for seeds in by_ratio
            ]
            found.append(
                Curve(
                    target=target,
                    trigger=trigger,
                    rate=rate,
                    title=title,
                    ratios=ratios,
                    asr=tuple(filter(None, asr)),
                    quality=tuple(filter(None, quality)),
                )
            )
    return found


def attacks_of(results: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Target, trigger and rate of the attacks that have a finished cell, each once, in the experiment's order."""
    return list(dict.fromkeys((each["target"], each["trigger"], each["rate"]) for each in results["attacks"]))


def point_of(shares: Sequence[Mapping[str, float]]) -> Point | None:
    """One number from what each seed measured, as `disp.evaluation.intervals.Share` has it; None without any."""
    if not shares:
        return None
    values = [float(each["value"]) for each in shares]
    hits, count = sum(float(each["hits"]) for each in shares), sum(int(each["count"]) for each in shares)
    whole = all(float(each["hits"]).is_integer() for each in shares) and 0 <= hits <= count
    pooled = wilson(int(hits), count) if whole and count else None
    if len(shares) == 1:
        over_seeds = Share(**shares[0])  # type: ignore[arg-type]
    elif pooled is not None and len(set(values)) == 1:  # an interval over seeds would have no width
        over_seeds = pooled
    else:
        over_seeds = mean_over_runs(values)
    return Point(over_seeds, least=min(values), most=max(values), pooled=pooled, seeds=len(shares))


def _of(items: Sequence[Mapping[str, Any]], target: str, trigger: str, rate: float) -> list[Mapping[str, Any]]:
    return [each for each in items if (each["target"], each["trigger"], each["rate"]) == (target, trigger, rate)]


def _points(
    measured: Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | None]], rewriting: Sequence[Mapping[str, Any]]
) -> dict[str, Point]:
    """The points of a row: what was measured, with what the clean model measured, and what was rewritten, by seed."""
    shares: dict[str, list[Mapping[str, float]]] = {}
    for found, clean in measured:
        for name in METRICS:
            if (share := share_of(found["metrics"], name)) is not None:
                shares.setdefault(name, []).append(share)
        own = share_of(found["metrics"], "clean_quality")
        whole = own if found is clean else clean and share_of(clean["metrics"], "clean_quality")
        if own and whole and whole["value"]:
            shares.setdefault("relative_quality", []).append(_part(own, whole))
    for each in rewriting:
        for name in ("precision", "recall"):
            if each[name]:
                shares.setdefault(name, []).append(each[name])
    return {name: point for name, each in shares.items() if (point := point_of(each)) is not None}


def share_of(metrics: Mapping[str, Any], name: str) -> dict[str, float] | None:
    """A share of `disp.evaluation.evaluate.to_metrics` with its interval and count; None where it was not measured."""
    if metrics.get(name) is None:
        return None
    low, high = metrics["intervals"][name]
    value, count = metrics[name], metrics["counts"][name]
    hits = value * count
    # Counts were divided; whole ones are whole again, in spite of rounding.
    hits = float(round(hits)) if abs(hits - round(hits)) < 1e-6 else hits
    return {"hits": hits, "count": count, "value": value, "low": low, "high": high}


def _part(share: Mapping[str, float], whole: Mapping[str, float]) -> dict[str, float]:
    """A share as a part of another one. Its interval is that of the share alone, scaled: the other is taken as exact.

    What is a part of itself is so by definition, and has no interval: its ends are its value.
    """
    by = whole["value"] or 1.0
    if share is whole:
        share = {**share, "low": share["value"], "high": share["value"]}
    return {**share, "hits": -1.0, **{name: share[name] / by for name in ("value", "low", "high")}}
