"""Errors that are the user's to mend: shown as one message, without a traceback; and checks of settings by them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any


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


def check_shares(config: Any, *names: str, zero: bool = True) -> None:
    """Make sure that settings are shares: numbers in [0, 1], or in (0, 1] without ``zero``.

    Args:
        config: what has them as attributes.
        names: of the settings.
        zero: whether they may be 0.

    Raises:
        DispError: one is none. NaN, which every comparison passes by, is none.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1 or not (zero or value):
            raise DispError(f"{name} must be in {'[' if zero else '('}0, 1], got {value}")


def check_counts(config: Any, *names: str, least: int = 1) -> None:
    """Make sure that settings are whole numbers of at least ``least``.

    Args:
        config: what has them as attributes.
        names: of the settings.
        least: the smallest that makes sense.

    Raises:
        DispError: one is none.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise DispError(f"{name} must be a whole number, got {value!r:.40}")
        if value < least:
            raise DispError(f"{name} must be at least {least}, got {value}")


def check_not_negative(config: Any, *names: str, finite: bool = True) -> None:
    """Make sure that settings are numbers of at least 0.

    Args:
        config: what has them as attributes.
        names: of the settings.
        finite: whether infinity is refused.

    Raises:
        DispError: one is none.
    """
    for name in names:
        value = getattr(config, name)
        if not value >= 0:
            raise DispError(f"{name} must be at least 0, got {value}")
        if finite and math.isinf(value):
            raise DispError(f"{name} must be finite, got {value}")


def check_growing(name: str, shares: Sequence[float]) -> None:
    """Make sure that there is a list of growing shares in (0, 1].

    Raises:
        DispError: it is empty or not growing, or one of them is no such share.
    """
    if not shares or list(shares) != sorted(set(shares)) or not (0 < shares[0] and shares[-1] <= 1):
        raise DispError(f"{name} must be shares in (0, 1] in growing order, at least one of them, got {shares}")
