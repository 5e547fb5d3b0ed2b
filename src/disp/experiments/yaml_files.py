"""YAML files that anyone may have written: errors are one line."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from disp.errors import DispError


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # the library comes without types
    """The safe loader, which refuses a key that is given twice, or is a list or a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be a word or a number, got a list or a mapping", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        made: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return made


def read_yaml(text: str, where: str) -> Mapping[str, Any]:
    """The mapping that a YAML text holds.

    Args:
        text: the text.
        where: what errors call it.

    Raises:
        DispError: it is no YAML, no mapping, or gives a key twice.
    """
    try:
        found = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise DispError(f"{where}:{line} {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DispError(f"{where} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise DispError(f"{where} must hold keys with values, such as 'kind: defences'")
    return found


def read_file(path: Path) -> str:
    """The text of a file.

    Raises:
        DispError: it cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DispError(f"{path} cannot be read as text: {error}") from None
