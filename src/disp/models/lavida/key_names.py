"""Names of LaViDa's published parameters."""

from __future__ import annotations

from disp.models.lavida.published import Variant
from disp.models.parts.key_names import from_llada, from_llava, to_llada, to_llava


def our_name(name: str, variant: Variant) -> str:
    """Our name of a published parameter."""
    return from_llava(from_llada(name) if variant == "llada" else name)


def official_name(name: str, variant: Variant) -> str:
    """The published name of one of our parameters."""
    return to_llava(to_llada(name) if variant == "llada" else name)
