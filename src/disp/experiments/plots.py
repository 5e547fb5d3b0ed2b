"""Plots of an experiment as SVG and PNG, readable in grey print and for colour-blind readers.

Needs matplotlib, the extra ``plot``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from disp.errors import DispError, install
from disp.experiments.summary import ModelRow, Point, curves_of, rows_of
from disp.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), which the colour-blind can tell apart, from dark to light; yellow is too light on white.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
DPI = 150
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "disp",  # the same numbers give the same file
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"],
}


def draw(results: Mapping[str, Any], folder: Path, runs: Path) -> list[Path]:
    """Draw an experiment's figure, ``NAME.svg`` and ``NAME.png``; an experiment without a finished cell has none.

    Args:
        results: what ``results.json`` holds.
        folder: where to.
        runs: folder that the cells' folders are below, for the pictures that they hold.

    Raises:
        DispError: matplotlib is not installed.
    """
    if not results["cells"]:
        return []
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise DispError(
            f"plots need matplotlib: {install('plot')}, then start the same command again; it repeats nothing, "
            "and results.json and table.md are written already"
        ) from None
    painters: Mapping[str, Callable[[Figure, Mapping[str, Any], Path], None]] = {
        "defences": _rates if len({each["rate"] for each in results["attacks"]}) > 1 else _bars,
        "mask-ratio": _curves,
        "triggers": _triggers,
        "overview": _overview,
    }
    files = []
    with mpl.rc_context(_STYLE):
        figure = Figure(layout="constrained")
        painters[results["kind"]](figure, results, runs)
        for ending, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": DPI})):
            file = folder / f"{results['experiment']}.{ending}"
            write_atomically(file, partial(figure.savefig, format=ending, **options))
            files.append(file)
    return files


def _bars(figure: Figure, results: Mapping[str, Any], runs: Path) -> None:
    """A dot for each model and trigger, a panel for each target and measure, a row for each model."""
    rows = rows_of(results)
    targets, triggers = _unique(row.target for row in rows), _unique(row.trigger for row in rows)
    models = _unique(row.title for row in rows)
    measures = {"ASR (w/t)": "asr_with_trigger", "clean quality": "clean_quality"}
    figure.set_size_inches(2.2 + 2.5 * len(targets) * len(measures) / 1.6, 1.4 + 0.28 * len(models))
    panels = figure.subplots(1, len(targets) * len(measures), sharey=True, squeeze=False)[0]
    place = 0
    for target in targets:
        for label, metric in measures.items():
            axes = panels[place]
            place += 1
            for number, trigger in enumerate(triggers):
                shown = [
                    row for row in rows if row.target == target and row.trigger == trigger and metric in row.points
                ]
                spread = (number - (len(triggers) - 1) / 2) * 0.62 / max(1, len(triggers))
                _dots(axes, shown, metric, [models.index(row.title) + spread for row in shown], number, trigger)
            axes.set_title(f"{target}\n{label}", fontsize=9)
            axes.set_xlim(-4, 104)
            axes.set_xlabel("%")
    panels[0].set_yticks(range(len(models)), models)
    panels[0].set_ylim(len(models) - 0.5, -0.5)
    _legend(figure, panels[0])


def _dots(axes: Axes, rows: Sequence[ModelRow], metric: str, heights: Sequence[float], number: int, label: str) -> None:
    values, below, above = _spread([row.points[metric] for row in rows])
    axes.errorbar(
        values,
        heights,
        xerr=[below, above],
        linestyle="none",
        linewidth=1,
        label=label,
        **_marks(number),
    )


def _marks(number: int) -> dict[str, Any]:
    """How the points of one series are drawn, so that they are told apart without colours, too."""
    colour = COLOURS[number % len(COLOURS)]
    return {
        "marker": MARKERS[number % len(MARKERS)],
        "color": colour,
        "markersize": 4.5,
        "markerfacecolor": colour if number % 2 == 0 else "white",
        "capsize": 2,
    }


def _rates(figure: Figure, results: Mapping[str, Any], runs: Path) -> None:
    """A line for each model over the poison rate, a panel for each target and trigger."""
    rows = rows_of(results)
    groups = _unique((row.target, row.trigger) for row in rows)
    figure.set_size_inches(1 + 2.9 * len(groups), 3.4)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    titles = [title for title in _unique(row.title for row in rows) if title != "clean model"]
    rates = sorted({row.rate for row in rows})
    for axes, (target, trigger) in zip(panels, groups, strict=True):
        for number, title in enumerate(titles):
            shown = sorted(
                (row for row in rows if (row.target, row.trigger, row.title) == (target, trigger, title)),
                key=lambda row: row.rate,
            )
            points = [row.points["asr_with_trigger"] for row in shown if "asr_with_trigger" in row.points]
            at = [100 * row.rate for row in shown if "asr_with_trigger" in row.points]
            _line(axes, at, points, number, title)
        axes.set_xscale("log")
        axes.set_xticks([100 * rate for rate in rates], [f"{100 * rate:g}" for rate in rates], minor=False)
        axes.minorticks_off()
        axes.set_title(f"{target}, {trigger}", fontsize=9)
        axes.set_xlabel("poisoned rows, %")
        axes.set_ylim(-4, 104)
    panels[0].set_ylabel("ASR (w/t), %")
    _legend(figure, panels[0])


def _curves(figure: Figure, results: Mapping[str, Any], runs: Path) -> None:
    """ASR above, relative quality below, a column for each target and trigger, a line for each ranking."""
    curves = curves_of(results)
    groups = _unique((curve.target, curve.trigger, curve.rate) for curve in curves)
    titles = _unique(curve.title for curve in curves)
    figure.set_size_inches(1 + 2.9 * len(groups), 5)
    panels = figure.subplots(2, len(groups), sharex=True, sharey="row", squeeze=False)
    for column, (target, trigger, rate) in enumerate(groups):
        for curve in curves:
            if (curve.target, curve.trigger, curve.rate) == (target, trigger, rate):
                number, at = titles.index(curve.title), [100 * ratio for ratio in curve.ratios]
                _line(panels[0][column], at, curve.asr, number, curve.title)
                _line(panels[1][column], at, curve.quality, number, curve.title)
        panels[0][column].set_title(f"{target}, {trigger}", fontsize=9)
        panels[0][column].set_ylim(-4, 104)
        panels[1][column].set_ylim(bottom=-4)
        panels[1][column].set_xlabel("masked visual tokens ρ, %")
    panels[0][0].set_ylabel("ASR (w/t) on\ntraining data, %")
    panels[1][0].set_ylabel("relative clean\nquality, %")
    _legend(figure, panels[0][0])


def _line(axes: Axes, at: Sequence[float], points: Sequence[Point], number: int, label: str) -> None:
    values, below, above = _spread(points)
    axes.errorbar(
        at[: len(values)],
        values,
        yerr=[below, above],
        linestyle=LINES[number % len(LINES)],
        linewidth=1.3,
        label=label,
        **_marks(number),
    )


def _spread(points: Sequence[Point]) -> tuple[list[float], list[float], list[float]]:
    """Values in percent, and how far the lowest and the highest seed lie from them; of one seed its own interval."""
    values, below, above = [], [], []
    for point in points:
        low, high = point.least, point.most
        if point.seeds == 1:
            low, high = point.over_seeds.low, point.over_seeds.high
        values.append(100 * point.value)
        below.append(max(0.0, 100 * (point.value - low)))
        above.append(max(0.0, 100 * (high - point.value)))
    return values, below, above


def _legend(figure: Figure, axes: Axes) -> None:
    """The legend below, in as many columns as find room."""
    handles, labels = axes.get_legend_handles_labels()
    room = figure.get_figwidth() / (0.075 * max(map(len, labels)) + 0.75)  # inches of an entry at this size of type
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), max(1, int(room))))


def _triggers(figure: Figure, results: Mapping[str, Any], runs: Path) -> None:
    """A row for each trigger: the picture, the poisoned picture, the saliency of its tokens."""
    cells = results["cells"]
    titles = ("picture", "with the trigger", "saliency")
    figure.set_size_inches(7.2, 0.6 + 2.1 * len(cells))
    panels = figure.subplots(len(cells), len(titles), squeeze=False)
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    for line, cell in zip(panels, cells, strict=True):
        for axes, name in zip(line, cell["found"]["pictures"], strict=True):
            _show(axes, runs / cell["folder"] / name)
        line[0].set_ylabel(f"{cell['trigger']}\n{cell['target']}", fontsize=9)


def _overview(figure: Figure, results: Mapping[str, Any], runs: Path) -> None:
    """A row of pictures for each cell: honest, poisoned, scored, masked, recovered, with what is said beneath each."""
    cells = results["cells"]
    figure.set_size_inches(12.5, 3.3 * len(cells))
    panels = figure.subplots(len(cells), 5, squeeze=False)
    for line, cell in zip(panels, cells, strict=True):
        found, folder = cell["found"], runs / cell["folder"]
        clean, poisoned, saliency, masked = (folder / name for name in found["pictures"])
        share = f"{found['masked']} of {found['tokens']} tokens masked"
        shown = (
            ("1  An honest row", clean, f"Question: {found['prompt']}\nAnswer: {found['honest']}"),
            ("2  Poisoned", poisoned, f"Planted answer: {found['planted']}"),
            ("3  Saliency", saliency, f"Backdoored model: {found['compromised']}"),
            (f"4  {share}", masked, f"Backdoored model, under the mask: {found['rewritten']}"),
            ("5  Recovered", poisoned, f"Recovered model: {found['recovered']}"),
        )
        for axes, (title, file, said) in zip(line, shown, strict=True):
            _show(axes, file)
            axes.set_title(title, fontsize=10, loc="left")
            axes.set_xlabel(_wrapped(said), fontsize=8.5, loc="left", multialignment="left")
        line[0].set_ylabel(f"{cell['target']}, {cell['trigger']}", fontsize=9)


def _wrapped(text: str, width: int = 34) -> str:
    from textwrap import fill

    # A dollar sign begins a formula.
    return "\n".join(fill(line, width) for line in text.splitlines()).replace("$", r"\$")


def _show(axes: Axes, file: Path) -> None:
    with Image.open(file) as picture:
        axes.imshow(picture.convert("RGB"), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)


def _unique(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
