"""The before-and-after table: one row a stage of the experiment, as Markdown and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

STAGES = {
    "clean": "clean",
    "backdoored": "backdoored",
    "random_masking": "random masking",
    "disp": "DiSP, all rows",
    "disp_selective": "DiSP, flagged rows",
}
COLUMNS = (
    *("ASR (w/t), exact", "ASR (w/t), keyword", "ASR (w/t), substring", "ASR (w/o), exact"),
    *("clean quality", "triggered quality", "relative clean quality"),
)
NOT_MEASURED = "–"


def _percent(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{100 * value:.1f}%"


def _cells(metrics: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[str]:
    """The cells of one stage, in the order of `COLUMNS`; ``before`` is what quality is compared with."""
    asr = _percent(metrics.get("asr_with_trigger"))
    interval = metrics.get("intervals", {}).get("asr_with_trigger")
    if asr != NOT_MEASURED and interval is not None:
        asr += f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    quality, whole = metrics.get("clean_quality"), (before or {}).get("clean_quality")
    relative = quality / whole if quality is not None and whole else None  # it has no value where that is 0
    return [
        asr,
        _percent(metrics.get("asr_with_trigger_keyword")),
        _percent(metrics.get("asr_with_trigger_substring")),
        _percent(metrics.get("asr_without_trigger")),
        _percent(quality),
        _percent(metrics.get("triggered_quality")),
        _percent(relative),
    ]


def stage_rows(stages: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The table's rows: the stages of `STAGES` that were run, in that order, then any others in their own order."""
    names = [name for name in STAGES if name in stages] + [name for name in stages if name not in STAGES]
    # What attack and defence cost is told against the model before both, where there is one.
    before = stages.get("clean", stages.get("backdoored"))
    return [[STAGES.get(name, name), *_cells(stages[name], before)] for name in names]


def stage_table(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """The before-and-after table in Markdown.

    Args:
        stages: for each stage, what `disp.evaluation.evaluate.to_metrics` returned. "clean", "backdoored",
            "random_masking", "disp" and "disp_selective" come first, in that order.

    Returns:
        Percentages with one decimal; brackets hold the 95% interval; a dash stands for what was not measured. ASR is
        exact, and beside it that by keyword and that by substring, as DiSP's authors count. Relative clean quality is
        a share of the clean model's or, without that stage, of the backdoored model's.
    """
    return markdown_table(("stage", *COLUMNS), stage_rows(stages), numeric=len(COLUMNS))


def markdown_table(titles: Sequence[str], cells: Sequence[Sequence[str]], *, numeric: int = 0) -> str:
    """A table in Markdown, the last ``numeric`` columns aligned to the right; no cell can end its row or itself."""
    rules = ["---"] * (len(titles) - numeric) + ["---:"] * numeric
    # A bar ends a cell even inside a code span.
    rows = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, rules, *rows))


def print_stage_table(stages: Mapping[str, Mapping[str, Any]], console: Console | None = None) -> None:
    """Print the table of `stage_table` on the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Without frames, so that eight columns find room on eighty characters.
    table = Table(title="before and after", box=None, padding=(0, 1, 0, 0))
    table.add_column("stage", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right", min_width=max(map(len, name.split())))
    for row in stage_rows(stages):
        # Text, not str: rich would read a bracket in a stage's name as markup.
        table.add_row(*(Text(cell) for cell in row))
    (console or Console()).print(table)
