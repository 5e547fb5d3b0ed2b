"""How numbers are written in reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NOT_MEASURED = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage with one decimal, or two digits where that would be 0."""
    if share is None or not math.isfinite(share):
        return NOT_MEASURED
    return f"{100 * share:.2g}%" if 0 < share < 0.0005 else f"{100 * share:.1f}%"


def interval(ends: Sequence[float] | None) -> str:
    """The two ends of an interval of shares, or nothing."""
    return f"{percent(ends[0])} to {percent(ends[1])}" if ends else ""


def p_value(value: float | None) -> str:
    """A p-value: three decimals, or a power of ten where it is smaller than they can show."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    if value >= 0.001:
        return f"{value:.3f}"
    if value < 1e-300:
        return "< 10⁻³⁰⁰"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def number(value: Any) -> str:
    """A count with separators, another number with four digits, and a dash for what was not measured."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float | None) -> str:
    """Seconds in the units that people use."""
    if seconds is None or not math.isfinite(seconds):
        return NOT_MEASURED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def counted(count: int, thing: str) -> str:
    """A number and its noun, which is in the plural unless the number is one."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def table_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of an evaluation's rows in the order of their first appearance; a name first, intervals left out.

    A column ``x_interval`` belongs to the column ``x``.
    """
    names = list(dict.fromkeys(key for row in rows for key in row if key != "name"))
    return [name for name in names if not (name.endswith("_interval") and name.removesuffix("_interval") in names)]


def table_cell(row: Mapping[str, Any], column: str) -> str:
    """One value of an evaluation's row, with its interval where there is one."""
    value = row.get(column)
    share = isinstance(value, float) and 0 <= value <= 1 and _is_share(column)
    text = percent(value) if share else number(value)
    ends = row.get(f"{column}_interval")
    if ends and text != NOT_MEASURED:
        text += f" [{percent(ends[0])}, {percent(ends[1])}]" if share else f" [{number(ends[0])}, {number(ends[1])}]"
    return text


def column_title(column: str) -> str:
    """A column's key as a heading: ``asr_keyword`` becomes "ASR keyword"."""
    return " ".join("ASR" if word == "asr" else word for word in column.split("_"))


def _is_share(column: str) -> bool:
    return bool({"asr", "quality", "rate", "recall", "precision", "share"} & set(column.split("_")))
