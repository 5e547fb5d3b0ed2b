"""The table of families: to add one, write its package and add a line here."""

from __future__ import annotations

from importlib import import_module

from disp.errors import DispError, unknown_name
from disp.models.family import Config, Family

# Name -> the module whose ``FAMILY`` is the family. A config.json is offered to them in this order.
FAMILIES: dict[str, str] = {
    "builtin": "disp.models.builtin.family",
    "llada_v": "disp.models.llada_v.family",
    "lavida": "disp.models.lavida.family",
    "mmada": "disp.models.mmada.family",
    "dimple": "disp.models.dimple.family",
    "diffusion_gemma": "disp.models.diffusion_gemma.family",
}


def family(name: str) -> Family:
    """The family of this name in `FAMILIES`."""
    found = import_module(FAMILIES[name]).FAMILY
    assert isinstance(found, Family), f"{FAMILIES[name]} has no FAMILY"
    return found


def all_families() -> list[Family]:
    """Every family, in the order of the table."""
    return [family(name) for name in FAMILIES]


def detect(config: Config, what: str) -> Family:
    """The family of a checkpoint.

    Args:
        config: the fields of its config.json.
        what: names the config.json in the error.

    Raises:
        DispError: no family knows it.
    """
    for each in all_families():
        if each.detect(config):
            return each
    raise unknown_family(str(config.get("model_type", "")), what)


def unknown_family(kind: str, what: str) -> DispError:
    """The error for a config.json of no family; ``kind`` is its model type."""
    return unknown_name(f"model type in {what}:", kind, FAMILIES)
