"""Errors that are the user's to mend: shown as one message, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DispError(Exception):
    """A mistake in input, options or installation. The message names the thing, the place and the remedy."""


class Undecided(DispError):
    """An audit that no test could decide."""


def install(extra: str) -> str:
    """The command that brings in the packages of an extra, for the end of a message."""
    return f"pip install '.[{extra}]' in a clone of the repository"


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> DispError:
    """The error for a name that is not among the choices, with the nearest match."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return DispError(f"unknown {kind} {name!r}; choose one of {', '.join(choices)}.{hint}")
