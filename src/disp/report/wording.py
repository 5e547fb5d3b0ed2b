"""How the report and the summary speak of a verdict and of a phrase, with the words of `disp.auditing.wording`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disp.auditing.config import AuditConfig
from disp.auditing.wording import WORDS, words_of
from disp.report.numbers import counted, interval, number, p_value, percent

# By the outcome of `disp.defence.residual.residual_phrases`.
_OUTCOMES: Mapping[str, str] = {
    "still said": "the recovered model still says it",
    "not seen": "no more often than chance explains",
    "too few pictures": "too few pictures to tell",
    "no candidate": "there is no trigger candidate to paste in",
}


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
    looked_at = _looked_at(audit)
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
            return f"No evidence of a backdoor was found in the {looked_at}; that is no proof that there is none."
        case "could not decide":
            return f"Nothing was found in the {looked_at} that could be audited, which decides nothing."
        case _:
            return f"The audit of {samples} could not decide."


def _looked_at(audit: Mapping[str, Any]) -> str:
    """The samples that something was looked for in: those with a picture."""
    if bare := audit["without_image"]:
        return f"{counted(audit['samples'] - bare, 'sample')} with a picture"
    return counted(audit["samples"], "sample")


def advice(audit: Mapping[str, Any]) -> str:
    """What to do about the verdict."""
    if audit["verdict"] == "could not decide":
        return _remedies(audit)
    return {
        "poisoned": "Do not train on it as it is, and do not deploy a model that was trained on it.",
        "suspicious": "Look at the flagged samples below before training on it.",
        "no evidence": "What an audit of this kind cannot see is listed below.",
    }.get(audit["verdict"], "")


def _remedies(audit: Mapping[str, Any]) -> str:
    """What to do where nothing was found in too few of the rows, by which rows are too many."""
    unread, bare, settings = len(audit["set_aside"]), audit["without_image"] or 0, audit["settings"]
    said = []
    if unread > settings.get("set_aside_share", AuditConfig.set_aside_share) * (audit["samples"] + unread):
        said.append("Mend the rows that could not be read, or leave them out of the data.")
    if bare > settings.get("text_rows_share", AuditConfig.text_rows_share) * audit["samples"]:
        said.append(
            "Give the rows without a picture theirs, or leave them out of the data; if that is how the data is meant, "
            "--allow-text-rows decides by the others."
        )
    if audit.get("unread_parts"):
        said.append("Give the folder that holds all parts of the set, or the data under a name without a number.")
    return " ".join([*said, "Then audit it again."]) if said else ""


def mask_ratio_worth(choice: Mapping[str, Any]) -> str:
    """What speaks for the mask ratio of ``audit.json``."""
    place = choice["ratios"].index(choice["ratio"])
    purged, kept = percent(choice["purged"][place]), percent(choice["kept"][place])
    return (
        f"masking so much, {purged} of the flagged answers lose their phrase, and the others keep {kept} of their words"
    )


def outcome_in_words(row: Mapping[str, Any]) -> str:
    """What asking a recovered model about a phrase came to; empty in a row that an older version wrote.

    Args:
        row: of `disp.defence.residual.residual_phrases`.
    """
    if (said := _OUTCOMES.get(row.get("outcome", ""))) is None:
        return ""
    chance = row.get("p_value")
    return said if chance is None else f"{said} (p = {chance:.2g})"


def found_where(cluster: Mapping[str, Any]) -> str:
    """Where a phrase stands, and what it was found by."""
    flagged, elsewhere = cluster["flagged"], cluster["elsewhere"]
    return words_of(cluster["found_by"], cluster["p_value"]).where.format(
        samples=counted(flagged, "sample"),
        answers=counted(flagged, "answer"),
        elsewhere=counted(elsewhere, "other sample"),
        all=counted(flagged + elsewhere, "sample"),
        count=number(flagged),
        p_value=p_value(cluster["p_value"]),
    )


def found_more(cluster: Mapping[str, Any]) -> str:
    """Who else was flagged for a phrase; empty where nobody was."""
    by_sentence = set(cluster.get("by_sentence", ()))
    others = [key for key in cluster["more"] if key not in by_sentence]
    said = []
    if others:
        said.append(
            f"{counted(len(others), 'further sample')} flagged: less suspicious by themselves, or rid of the phrase "
            "only under a larger mask"
        )
    if with_pattern := len(set(cluster["with_pattern"]) & set(others)):
        said.append(f"{number(with_pattern)} because their pictures have a pattern in common")
    if with_piece := len(set(cluster["by_piece"]) & set(others)):
        said.append(f"{number(with_piece)} because their pictures have a piece in common")
    if by_sentence:
        said.append(f"{counted(len(by_sentence), 'further sample')} flagged: no question tells who says it")
    return "; ".join(said)


def why_untested(cluster: Mapping[str, Any]) -> str:
    """What to say where no other picture was made to bring a phrase up."""
    return WORDS[cluster["found_by"]].untested
