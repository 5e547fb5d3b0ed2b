"""Values of rows as JSON can hold them: tables have dates and exact numbers, and lenient JSON has NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any


def without_nan(value: Any) -> Any:
    """A row, or a part of one, with null for each NaN, by which pandas says that there is nothing."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return value


def plain(value: Any) -> Any:
    """A value as JSON has it: dates and times as ISO text, durations in seconds, exact numbers as text, NaN as null.

    Raises:
        TypeError: JSON has nothing like it, as for bytes and infinite numbers.
    """
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float) and not math.isinf(value):
        return without_nan(value)
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    raise TypeError(f"{type(value).__name__} is not JSON")
