"""Which samples people are shown, for the audit that asks the model about them and for the report."""

from __future__ import annotations

# Unflagged samples beside the flagged ones, for comparison.
UNFLAGGED_SHOWN = 4


def unflagged_places(count: int) -> list[int]:
    """Which of so many unflagged samples are shown, in their order from the most suspicious on.

    The first is the most suspicious, the last in the middle.
    """
    if not count:
        return []
    return sorted({count // 2 * step // max(1, UNFLAGGED_SHOWN - 1) for step in range(UNFLAGGED_SHOWN)})
