"""Frozen dataclasses of several kinds to JSON-able dicts and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from disp.errors import DispError, unknown_name

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
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    kind = str(values.pop("kind", ""))
    if kind not in kinds:
        raise unknown_name(f"kind of {what}", kind, kinds)
    return typed(kinds[kind], what, values)


def typed(kind: type[Thing], what: str, values: Mapping[str, Any]) -> Thing:
    """A dataclass with values of the types that it declares: those of a file that anyone may have edited.

    Raises:
        DispError: a value is missing, surplus or of another type.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise unknown_name(f"field of the {what}", name, hints)
        if not _fits(value, hints[name]):
            raise DispError(f"the {what}'s {name} cannot be {value!r}")
    if missing := [name for name in hints if name not in values and not hasattr(kind, name)]:
        raise DispError(f"the {what} has no {' and no '.join(missing)}")
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type as the dataclasses here declare them; what a name may be is for them to say."""
    parts = get_args(hint)
    if get_origin(hint) is UnionType:
        return any(_fits(value, part) for part in parts)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if get_origin(hint) is Literal:
        return isinstance(value, str)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)
