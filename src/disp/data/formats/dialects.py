"""Every way to write a sample as a row, and how a row is recognised."""

from __future__ import annotations

from typing import Any

from disp.data.formats import cauldron, fields, llava, minicpm_v, qwen_vl, sharegpt
from disp.data.formats.row import BadRow, Dialect, Fields
from disp.words import shortened

# Fields that are a form by being there.
LISTS = ("messages", "conversations", "conversation", "texts")
# A row is read by the first that it looks like.
DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        minicpm_v.MINICPM_V,
        qwen_vl.QWEN_VL,
        llava.LLAVA,
        sharegpt.SHAREGPT,
        cauldron.CAULDRON,
        fields.MS_SWIFT,
        fields.ALPACA,
        fields.QUESTION_ANSWER,
        fields.PALIGEMMA,
        fields.QUESTIONS,
        fields.CAPTIONS,
    )
}


def dialect_of(row: Fields, forced: str | None = None) -> Dialect:
    """How a row is read.

    Args:
        row: its fields.
        forced: the only dialect that it may be in.

    Raises:
        BadRow: it is in none, or a field of the one that it is in holds something else.
    """
    if forced is not None:
        return DIALECTS[forced]
    # Sets that were joined have the columns of each other, with nothing in them.
    filled = {key: value for key, value in row.items() if value or key not in LISTS}
    for some in (filled, row):
        for dialect in DIALECTS.values():
            if dialect.matches(some):
                return dialect
    fields.check_fits(row)
    found = shortened(", ".join(map(str, row)), 200) or "nothing"
    # LLaVA's own first, which most people have.
    known = sorted(DIALECTS.values(), key=lambda dialect: dialect.name != "llava")
    wanted = "; ".join(dialect.wants for dialect in known)
    raise BadRow(f"no conversations: found {found}; wanted are the keys of one format: {wanted}")


def is_row(value: Any) -> bool:
    """Whether an object looks like a row of some format."""
    return isinstance(value, dict) and any(dialect.matches(value) for dialect in DIALECTS.values())
