"""Dataclasses from plain values of files that anyone may have written: every name and value is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from disp.errors import DispError, unknown_name

Kind = TypeVar("Kind")
# What messages call the types of plain values.
_CALLED = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}


def typed(kind: type[Kind], values: object, where: str) -> Kind:
    """A dataclass of plain values: numbers, texts, lists and mappings, as YAML and JSON have them.

    Args:
        kind: a dataclass with fields of numbers, texts, `Literal`, tuples, mappings and other classes.
        values: a mapping of its fields; what a field of another class holds may be made already.
        where: what errors call it.

    Raises:
        DispError: a key is unknown or missing, or a value is of another type. What the dataclass itself raises passes
            with ``where`` before it.
    """
    if not isinstance(values, Mapping):
        raise DispError(f"{where} must hold keys with values, got {values!r}")
    hints = get_type_hints(kind)
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise unknown_name(f"key in {where}:", str(name), known)
    for name, each in known.items():
        if name not in values and each.default is MISSING and each.default_factory is MISSING:
            raise DispError(f"{where}: the key {name!r} is missing")
    read = {name: _value(value, hints[name], f"{where}: {name}") for name, value in values.items()}
    try:
        return kind(**read)
    except DispError as error:
        raise DispError(f"{where}: {error}") from None


def fields_of(kind: type, values: object, where: str) -> dict[str, Any]:
    """Some fields of a dataclass, checked as `typed` checks them all; the arguments are its."""
    found: Any = typed(kind, values, where)
    return {name: getattr(found, name) for name in values} if isinstance(values, Mapping) else {}


def _value(value: Any, hint: Any, where: str) -> Any:
    """A value as its field declares it."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        return _one_of(value, parts, where)
    if origin is Literal:
        if value not in parts:
            raise unknown_name(f"value of {where}:", str(value), map(str, parts))
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise DispError(f"{where} must be a list, such as [a, b], got {value!r}")
        kinds = (parts[0],) * len(value) if parts[-1] is Ellipsis else parts
        if len(value) != len(kinds):
            raise DispError(f"{where} must be a list of {len(kinds)}, got {value!r}")
        return tuple(_value(each, kinds[index], f"{where}[{index}]") for index, each in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise DispError(f"{where} must hold keys with values, got {value!r}")
        return {str(name): _value(each, parts[1], f"{where}: {name}") for name, each in value.items()}
    if hint not in (Any, *_CALLED) and isinstance(value, hint):
        return value
    if is_dataclass(hint):
        return typed(hint, value, where)  # type: ignore[arg-type]
    return _plain(value, hint, where)


def _one_of(value: Any, parts: tuple[Any, ...], where: str) -> Any:
    if value is None and NoneType in parts:
        return None
    problems = []
    for part in parts:
        if part is not NoneType:
            try:
                return _value(value, part, where)
            except DispError as error:
                problems.append(error)
    raise problems[-1]


def _plain(value: Any, hint: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, str):
        try:  # YAML takes 1e-4, without a point, for a text
            return float(value)
        except ValueError:
            pass
    wanted = (int, float) if hint is float else hint
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise DispError(f"{where} must be {_CALLED.get(hint) or f'a {hint.__name__}'}, got {value!r}")
    return float(value) if hint is float else value
