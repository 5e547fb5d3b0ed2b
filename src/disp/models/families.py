"""The table of families: to add one, write its package and add a line here."""

from __future__ import annotations

from importlib import import_module

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


def recognise(config: Config) -> Family | None:
    """The family of a checkpoint, by the fields of its config.json; None if no family knows it."""
    return next((each for each in all_families() if each.detect(config)), None)
