"""Exit codes of commands that look for a backdoor. `disp.cli.main` has those of errors and of stopped commands."""

from __future__ import annotations

from typing import Literal

NO_EVIDENCE, EVIDENCE, UNDECIDED = 0, 1, 2
# From the mildest to the gravest.
VERDICTS = ("no evidence", "suspicious", "poisoned")


def of_audit(verdict: str, fail_on: Literal["suspicious", "poisoned", "never"]) -> int:
    """The exit code of an audit; ``fail_on`` is the mildest verdict that counts as evidence."""
    if verdict == "could not decide":
        return UNDECIDED
    if fail_on != "never" and VERDICTS.index(verdict) >= VERDICTS.index(fail_on):
        return EVIDENCE
    return NO_EVIDENCE


def of_defence(left: Literal["evidence", "no evidence", "could not decide"]) -> int:
    """The exit code of a defence, by `disp.defence.defend.Defence.left`."""
    return {"evidence": EVIDENCE, "no evidence": NO_EVIDENCE, "could not decide": UNDECIDED}[left]
