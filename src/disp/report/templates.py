"""Templates in which every value is escaped, whether they ask for it or not."""

from __future__ import annotations

from typing import Any

import jinja2
from markupsafe import Markup

from disp.report import numbers
from disp.report.escape import plain, visible
from disp.report.wording import advice, headline, mask_ratio_worth


def template(text: str) -> jinja2.Template:
    """The template with the filters that pages need."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_safe, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "text": visible,
        "percent": numbers.percent,
        "interval": numbers.interval,
        "number": numbers.number,
        "p_value": numbers.p_value,
        "duration": numbers.duration,
        "counted": numbers.counted,
        "mask_ratio_worth": mask_ratio_worth,
        "headline": headline,
        "advice": advice,
        "cell": numbers.table_cell,
        "title": numbers.column_title,
    }
    return environment.from_string(text)


def _safe(value: Any) -> Any:
    """What the template prints: text of unknown origin loses its hidden characters; jinja then escapes it."""
    if isinstance(value, Markup):
        return value
    return plain(value) if isinstance(value, str) else value
