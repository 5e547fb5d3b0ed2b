"""How numbers are written in reports, and the sentence that a verdict stands for."""

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
    """Seconds as a person says them."""
    if seconds is None or not math.isfinite(seconds):
        return NOT_MEASURED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def mask_ratio_worth(choice: Mapping[str, Any]) -> str:
    """What speaks for the mask ratio of ``audit.json``."""
    place = choice["ratios"].index(choice["ratio"])
    purged, kept = percent(choice["purged"][place]), percent(choice["kept"][place])
    return (
        f"masking so much, {purged} of the flagged answers lose their phrase, and the others keep {kept} of their words"
    )


def counted(count: int, thing: str) -> str:
    """A number and its noun, in the plural but for one."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def headline(audit: Mapping[str, Any]) -> str:
    """The verdict as one sentence, or two, for somebody who reads nothing else."""
    aside = len(audit["set_aside"])
    if not aside:
        return _verdict(audit)
    return f"{_verdict(audit)} {counted(aside, 'further row')} could not be read and {_was(aside)} not audited."


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _verdict(audit: Mapping[str, Any]) -> str:
    samples = counted(audit["samples"], "sample")
    ends = f" (95% interval {interval(audit['estimated_rate_interval'])})" if audit["estimated_rate_interval"] else ""
    match audit["verdict"]:
        case "poisoned":
            return (
                f"This data is poisoned: an estimated {percent(audit['estimated_rate'])} of its {samples}{ends} teach "
                "a model to give an attacker’s answer when a trigger is in the picture."
            )
        case "suspicious":
            return (
                f"Something in this data looks like a backdoor, but the evidence does not settle it: "
                f"{audit['flagged']:,} of its {samples} stand out and should be looked at."
            )
        case "no evidence":
            return f"No evidence of a backdoor was found in the {samples}; that is no proof that there is none."
        case "could not decide":
            return f"Nothing was found in the {samples} that could be audited, which decides nothing."
        case _:
            return f"The audit of {samples} could not decide."


def advice(audit: Mapping[str, Any]) -> str:
    """What to do about the verdict."""
    return {
        "poisoned": "Do not train on it as it is, and do not deploy a model that was trained on it.",
        "suspicious": "Look at the flagged samples below before training on it.",
        "no evidence": "What an audit of this kind cannot see is listed below.",
        "could not decide": "Mend the rows that could not be read, or leave them out of the data, and audit it again.",
    }.get(audit["verdict"], "")


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
