"""What a defence came to, in lines for a terminal."""

from __future__ import annotations

from pathlib import Path

from disp.defence.defend import Defence
from disp.report.wording import outcome_in_words


def recovery_lines(found: Defence, report: Path | None) -> list[str]:
    """What became of the model.

    Args:
        found: a defence in which something was done.
        report: the report on the recovered model, if there is one.
    """
    assert found.after is not None
    lines = [f"After recovery: {found.after.verdict}", *found.after.reasons]
    for row in found.residual:
        (said, asked), (said_pasted, asked_pasted) = row["clean"], row["triggered"]
        lines.append(
            f"{row['phrase']!r}: said in {said} of {asked} answers, {said_pasted} of {asked_pasted} with the trigger "
            f"candidate pasted in: {outcome_in_words(row)}"
        )
    if report is not None:
        lines.append(f"Report on the recovered model: {report}")
    return [*lines, f"Recovered model: {found.model}   purified data: {found.data}"]


def warnings(found: Defence) -> list[str]:
    """What is still to be done after a defence; empty where nothing is."""
    lines = []
    remedy = "more rounds (--rounds), longer training (--steps) or the checkpoint before fine-tuning (--start)"
    if found.after is not None and found.after.findings:
        lines.append(
            "The audit of the recovered model still finds what is named under 'After recovery': look at its report, "
            f"then try {remedy}"
        )
    if found.still_said:
        phrases = ", ".join(map(repr, found.still_said))
        lines.append(f"The recovered model still says {phrases}: do not use it; try {remedy}")
    untold = [row["phrase"] for row in found.residual if row["outcome"] == "too few pictures"]
    if found.left == "could not decide" and untold:
        lines.append(
            f"Whether the recovered model still says {', '.join(map(repr, untold))} could not be decided: there "
            "are too few rows to paste the trigger candidate into; add rows that do not say it, or ask the model "
            "about pictures with the candidate in them (disp generate)"
        )
    return lines
