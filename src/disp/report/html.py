"""The evidence report: one page that can be sent to a colleague, with nothing active in it.

The page has no scripts, loads nothing and is told so by its content security policy, which names the one style sheet by
its hash. Every value goes through `disp.report.escape` on its way into the page, whether the template asks for it or
not.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from disp.auditing.wording import WORDS, why_flagged
from disp.errors import DispError
from disp.files import write_text
from disp.report import numbers
from disp.report.figures import candidate_figure, mean_map_figure
from disp.report.histogram import histogram
from disp.report.inputs import ReportInput, read_input
from disp.report.picture import HEAT_COLOURS
from disp.report.samples import sample_view
from disp.report.summary import summary_text
from disp.report.templates import template
from disp.report.wording import found_more, found_where, outcome_in_words, why_untested
from disp.words import shortened

MAX_LISTED = 50  # rows set aside, samples of a cluster
MAX_INDEXED = 2000  # flagged rows in the index; flagged.csv has them all
_TONES = {"poisoned": "bad", "suspicious": "doubt", "no evidence": "calm"}


def write_report(folder: Path, top: int = 12) -> Path:
    """Write ``report.html`` and ``summary.md`` beside an audit's results.

    Args:
        folder: the audit's output: ``audit.json``, ``evidence.jsonl`` and, after a defence, ``evaluation.json`` and
            ``verify.json``.
        top: how many flagged samples are shown, the most suspicious first.

    Returns:
        The path of ``report.html``.

    Raises:
        DispError: a file of the audit is missing or damaged. A picture that is missing is named in its place instead.
    """
    path = folder / "report.html"
    try:
        given = read_input(folder, top)
        page, summary = render(given), summary_text(given)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        ArithmeticError,
        RecursionError,
        jinja2.TemplateError,
    ) as error:
        reason = shortened(" ".join(f"{type(error).__name__}: {error}".split()))
        raise DispError(
            f"{folder}: audit.json or evidence.jsonl is damaged ({reason}); run `disp audit` again"
        ) from error
    write_text(path, page)
    write_text(folder / "summary.md", summary)
    return path


def render(given: ReportInput) -> str:
    """The page as text."""
    audit = given.audit
    phrases = {index: cluster["phrase"] for index, cluster in enumerate(audit["clusters"])}
    shown = [*given.flagged, *given.unflagged]
    # Numbers rather than names in the page's addresses: a name is data.
    samples = [sample_view(given.folder, row, f"sample-{at}", phrases) for at, row in enumerate(shown, 1)]
    anchors = {sample["id"]: sample["anchor"] for sample in samples}
    style = _file("report.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    index = _index(given, anchors)
    return _template().render(
        style=Markup(style),
        # The policy and the style sheet are ours; everything else is escaped.
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        audit=audit,
        tone=_TONES.get(audit["verdict"], "doubt"),
        verify=given.verify,
        verify_tone=_TONES.get(given.verify["verdict"], "doubt") if given.verify else "",
        outcome=outcome_in_words,
        evaluation=given.evaluation,
        columns=numbers.table_columns(given.evaluation),
        chart=histogram(audit["scores"], audit["threshold"]),
        clusters=[_cluster(given.folder, cluster) for cluster in audit["clusters"]],
        mean_map=mean_map_figure(audit["mean_map"]) if audit["mean_map"] else None,
        flagged=samples[: len(given.flagged)],
        unflagged=samples[len(given.flagged) :],
        anchors={row["id"]: row["anchor"] for row in index} | anchors,
        index=index,
        settings={key: _as_text(value) for key, value in _flat(audit["settings"])},
        max_listed=MAX_LISTED,
        max_indexed=MAX_INDEXED,
        palette=HEAT_COLOURS.astype(int).tolist(),
    )


def _index(given: ReportInput, anchors: Mapping[str, str]) -> list[dict[str, Any]]:
    """One line for each flagged row; ``detail`` is the anchor of its evidence, where that is shown."""
    why = why_flagged(given.audit["clusters"])
    return [
        {
            "anchor": f"flagged-{number}",
            "id": key,
            "suspicion": suspicion,
            "detail": anchors.get(key),
            "phrase": why.get(key, ("", ""))[0],
            "reason": why.get(key, ("", ""))[1],
        }
        for number, (key, suspicion) in enumerate(given.index[:MAX_INDEXED], 1)
    ]


def _cluster(folder: Path, cluster: Mapping[str, Any]) -> dict[str, Any]:
    candidate = cluster.get("candidate")
    return {
        **cluster,
        "figure": candidate_figure(folder, candidate, cluster.get("box")) if candidate else None,
        "paste": cluster.get("paste"),
        "untested": why_untested(cluster),
        "where": found_where(cluster),
        "further": found_more(cluster),
        "words": WORDS[cluster["found_by"]],
    }


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings and those of their parts, such as ``proof.donors``."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _file(name: str) -> str:
    return resources.files("disp.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    return template(_file("report.html.jinja"))
