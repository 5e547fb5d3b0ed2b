"""What is said of a phrase that the first audit found, once the recovered model was asked about it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Outcome = Literal["still said", "not seen", "too few pictures", "no candidate"]

_OUTCOMES: Mapping[str, str] = {
    "still said": "the recovered model still says it",
    "not seen": "no more often than chance explains",
    "too few pictures": "too few pictures to tell",
    "no candidate": "there is no trigger candidate to paste in",
}


def outcome_in_words(row: Mapping[str, Any]) -> str:
    """What a row of `disp.defence.residual.residual_phrases` comes to; empty where it has no outcome.

    Folders that an older version wrote have none.
    """
    if (said := _OUTCOMES.get(row.get("outcome", ""))) is None:
        return ""
    chance = row.get("p_value")
    return said if chance is None else f"{said} (p = {chance:.2g})"
