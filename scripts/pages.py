"""Pages of docs/ that hold parts which a script writes."""

from __future__ import annotations

from collections.abc import Mapping

END = "<!-- end -->\n"


def start_of(script: str) -> str:
    """The line before a part that a script writes; ``{}`` stands for the part's name."""
    return f"<!-- {{}}: written by scripts/{script} -->\n"


def filled(text: str, parts: Mapping[str, str], start: str) -> str:
    """A page with its parts as they are now.

    Args:
        text: the page.
        parts: what they hold, by name.
        start: see `start_of`.
    """
    for name, content in parts.items():
        begin = text.index(start.format(name)) + len(start.format(name))
        text = text[:begin] + content + text[text.index(END, begin) :]
    return text
