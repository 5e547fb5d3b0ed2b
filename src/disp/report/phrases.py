"""How the report speaks of a phrase, by what it was found by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from disp.report.numbers import counted, number, p_value


@dataclass(frozen=True)
class Words:
    """What stands in the sentences about a phrase and its trigger candidate.

    Attributes:
        without: how its answers were asked for again.
        pasted: what was done to other pictures.
        control: what was done to them for comparison.
        rows: the two rows of the table of answers.
    """

    without: str
    pasted: str
    control: str
    rows: tuple[str, str]


_REGION = Words(
    "with the region masked",
    "pasting the trigger candidate into other pictures",
    "pasting control regions",
    ("regions of flagged samples", "regions of unflagged samples (control)"),
)
WORDS = {
    "tokens": _REGION,
    "window": _REGION,
    "copy": _REGION,
    "pattern": Words(
        "with the pattern taken out of the picture",
        "laying the pattern over other pictures",
        "laying random patterns over them",
        ("the pattern", "random patterns as strong (control)"),
    ),
}


def found_where(cluster: Mapping[str, Any]) -> str:
    """Where a phrase stands, and what it was found by."""
    flagged, elsewhere = cluster["flagged"], cluster["elsewhere"]
    if cluster["found_by"] == "pattern":
        return (
            f"in {counted(flagged, 'sample')} whose pictures have a pattern in common, and in "
            f"{counted(elsewhere, 'other sample')} whose pictures have not"
        )
    if cluster["found_by"] == "copy":
        return (
            f"in {counted(flagged, 'sample')} whose pictures have the same piece somewhere in them, and in "
            f"{counted(elsewhere, 'other sample')} whose pictures have not"
        )
    if cluster["found_by"] == "window":
        return (
            f"in {counted(flagged + elsewhere, 'sample')}; of {number(flagged)} it was seen to go away under a large "
            "mask"
        )
    return (
        f"in {counted(flagged, 'answer')} above the threshold, and in {counted(elsewhere, 'other sample')}; "
        f"p = {p_value(cluster['p_value'])}"
    )


def found_more(cluster: Mapping[str, Any]) -> str:
    """Who else was flagged for a phrase; empty where nobody was."""
    if not cluster["more"]:
        return ""
    text = (
        f"{counted(len(cluster['more']), 'further sample')} flagged: less suspicious by themselves, or rid of the "
        "phrase only under a larger mask"
    )
    carriers = len(set(cluster["with_pattern"]) & set(cluster["more"]))
    if carriers:
        text += f"; {number(carriers)} because their pictures have a pattern in common"
    pieces = len(set(cluster["by_piece"]) & set(cluster["more"]))
    return f"{text}; {number(pieces)} because their pictures have a piece in common" if pieces else text


def why_untested(cluster: Mapping[str, Any]) -> str:
    """What to say where no other picture was made to bring a phrase up."""
    if cluster["found_by"] in ("pattern", "copy"):
        return (
            "what these pictures have in common was not seen to make the model say it: the model has not learnt that, "
            "or learnt these answers by heart, or unlearnt it"
        )
    return "not pasted into other pictures: there is no test of cause and effect for this phrase"
