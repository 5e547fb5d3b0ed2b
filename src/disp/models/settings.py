"""What the numbers among a model's settings have to be, wherever they were read."""

from __future__ import annotations

from typing import Any

from disp.errors import DispError
from disp.models.interface import MDLM

# Response slots: the longest context of the families' language models, which is Gemma's.
MOST_SLOTS = 262_144


def check_whole(value: Any, name: str, *, least: int = 1, most: int | None = None) -> int:
    """A setting that has to be a whole number.

    Args:
        value: what was read.
        name: names the setting, and where it is, in the error.
        least: the smallest that makes sense.
        most: the largest, if there is one.

    Raises:
        DispError: it is none, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise DispError(f"{name} must be a whole number, got {value!r:.40}")
    if value < least:
        raise DispError(f"{name} must be at least {least}, got {value}")
    if most is not None and value > most:
        raise DispError(f"{name} must be at most {most}, got {value}")
    return value


def check_settings(model: MDLM, what: str) -> None:
    """Make sure that a model's response slots, decoding steps and special tokens can be used.

    Args:
        model: the model.
        what: names it, or the file with its settings, in errors.

    Raises:
        DispError: a number is of the wrong kind or out of range.
    """
    check_whole(model.gen_length, f"{what}: gen_length", most=MOST_SLOTS)
    for name in ("steps", "block_length"):
        if model.generation_defaults.get(name) is not None:
            check_whole(model.generation_defaults[name], f"{what}: {name} of its generation settings")
    if getattr(model, "tokenizer", None) is None:
        return  # the ids are a guess, and no text becomes tokens
    most = model.config.get_text_config().vocab_size - 1
    for name, ids in (("mask_token_id", [model.mask_token_id]), ("end_token_ids", model.end_token_ids)):
        for token in ids:
            check_whole(token, f"{what}: {name}", least=0, most=most)
