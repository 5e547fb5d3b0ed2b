"""Frozen dataclasses of several kinds to JSON-able dicts and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from disp.errors import DispError, unknown_name
from disp.typed import typed

Thing = TypeVar("Thing")


def kind_to_dict(kinds: Mapping[str, type], table: str, thing: Any) -> dict[str, Any]:
    """The fields of a dataclass with the name of its kind; errors name ``table``, where ``kinds`` stands.

    Raises:
        DispError: it is of none of these kinds.
    """
    kind = next((name for name, made in kinds.items() if isinstance(thing, made)), None)
    if kind is None:
        raise DispError(
            f"{type(thing).__name__} has no name that a manifest could call it by; the kinds are "
            f"{', '.join(kinds)}, to which a class of yours can be added ({table})"
        )
    return {"kind": kind, **asdict(thing)}


def kind_from_dict(kinds: Mapping[str, type[Thing]], what: str, fields: object) -> Thing:
    """The dataclass that `kind_to_dict` wrote; JSON's lists are tuples again.

    Raises:
        DispError: ``fields`` is no such dict, its kind is unknown, or its fields are not those of its kind.
    """
    if not isinstance(fields, Mapping):
        raise DispError(f"the {what} must be an object with its kind and fields, got {fields!r}")
    values = dict(fields)
    kind = str(values.pop("kind", ""))
    if kind not in kinds:
        raise unknown_name(f"kind of {what}", kind, kinds)
    return typed(kinds[kind], values, f"the {what}")
