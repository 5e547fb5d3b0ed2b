"""Frozen dataclasses of several kinds to JSON-able dicts and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from disp.errors import unknown_name

Thing = TypeVar("Thing")


def kind_to_dict(kinds: Mapping[str, type], thing: Any) -> dict[str, Any]:
    """The fields of a dataclass with the name of its kind."""
    kind = next(name for name, made in kinds.items() if isinstance(thing, made))
    return {"kind": kind, **asdict(thing)}


def kind_from_dict(kinds: Mapping[str, type[Thing]], what: str, fields: Mapping[str, Any]) -> Thing:
    """The dataclass that `kind_to_dict` wrote; JSON's lists are tuples again.

    Raises:
        DispError: the kind is unknown.
    """
    rest = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    kind = str(rest.pop("kind", ""))
    if kind not in kinds:
        raise unknown_name(f"kind of {what}", kind, kinds)
    return kinds[kind](**rest)
