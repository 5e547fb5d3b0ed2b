"""How the scores are spread, as the places of bars in a drawing that any width fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BINS = 32
HEIGHT_PX = 220  # of the bars' ground
TOP_PX = 26  # above the highest bar, for the threshold's label


@dataclass(frozen=True)
class Bar:
    """One bin. Lengths along the x axis are percentages of the drawing's width, lengths along y are pixels.

    Attributes:
        low: the lowest score in it.
        high: the lowest score beyond it; the last bin holds this one as well.
        count: how many scores lie in it.
        flagged: whether it lies at or beyond the threshold.
        left: its left edge.
        width: its width.
        top: its upper edge.
        height: its height.
    """

    low: float
    high: float
    count: int
    flagged: bool
    left: float
    width: float
    top: float
    height: float


@dataclass(frozen=True)
class Tick:
    """A label on an axis: its place (percent on x, pixels on y), its text, and how the text lies to the place."""

    place: float
    text: str
    anchor: str


@dataclass(frozen=True)
class Histogram:
    """A drawing of scores. The axis of counts is logarithmic: one flagged sample in a thousand has to be seen.

    Attributes:
        bars: the bins from the lowest score to the highest.
        x_ticks: labels of the scores.
        y_ticks: labels of the counts.
        threshold: the place of the threshold, or none where there is none or it lies outside the drawing.
        height: of the drawing in pixels, without the labels below it.
    """

    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    threshold: Tick | None
    height: int


def histogram(scores: Sequence[float | None], threshold: float | None) -> Histogram | None:
    """Lay the scores out; nothing where no score is finite.

    An edge between two bins lies on the threshold, so that every bin is on one side of it.
    """
    values = [score for score in scores if score is not None and math.isfinite(score)]
    if not values:
        return None
    low, high = min(values), max(values)
    width = (high - low) / BINS or max(1.0, abs(low)) / BINS
    start = low
    if threshold is not None and low < threshold <= high:
        start = threshold - math.ceil((threshold - low) / width - 1e-9) * width
    count = max(1, math.ceil((high - start) / width - 1e-9))
    counts = [0] * count
    for value in values:
        # Rounding may move the result to the wrong side of an edge; the edge at the threshold must be exact.
        index = min(count - 1, max(0, math.floor((value - start) / width + 1e-9)))
        counts[index] += 1
    top = math.log1p(max(counts))
    bars = []
    for index, held in enumerate(counts):
        left, right = start + index * width, start + (index + 1) * width
        height = HEIGHT_PX * math.log1p(held) / top
        flagged = threshold is not None and left >= threshold - width * 1e-6
        bars.append(
            Bar(
                low=left,
                high=right,
                count=held,
                flagged=flagged,
                left=100 * index / count,
                width=100 / count,
                top=TOP_PX + HEIGHT_PX - height,
                height=height,
            )
        )
    end = start + count * width
    shown = None
    if threshold is not None and start <= threshold <= end:
        place = 100 * (threshold - start) / (end - start)
        shown = Tick(place, f"threshold {threshold:.3g}", "start" if place < 50 else "end")
    return Histogram(tuple(bars), _x_ticks(start, end), _y_ticks(max(counts)), shown, TOP_PX + HEIGHT_PX)


def _x_ticks(start: float, end: float) -> tuple[Tick, ...]:
    """Round numbers along the axis, four or so."""
    rough = (end - start) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    ticks = []
    for index in range(math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9) + 1):
        place = 100 * (index * step - start) / (end - start)
        anchor = "start" if place < 4 else "end" if place > 96 else "middle"
        ticks.append(Tick(place, f"{index * step:.6g}", anchor))
    return tuple(ticks)


def _y_ticks(largest: int) -> tuple[Tick, ...]:
    """Powers of ten up to the highest bar."""
    powers = [10**power for power in range(len(str(largest)))]
    return tuple(
        Tick(TOP_PX + HEIGHT_PX * (1 - math.log1p(count) / math.log1p(largest)), f"{count:,}", "start")
        for count in powers
    )
