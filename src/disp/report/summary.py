"""The report's content as Markdown, for a pull request or a terminal; nothing from the data is markup in it."""

from __future__ import annotations

import re
from typing import Any

from disp.auditing.wording import WORDS
from disp.evaluation.table import markdown_table
from disp.report import numbers
from disp.report.escape import plain
from disp.report.inputs import ReportInput
from disp.report.wording import (
    advice,
    found_more,
    found_where,
    headline,
    mask_ratio_worth,
    outcome_in_words,
    why_untested,
)

MAX_LISTED = 20


def summary_text(given: ReportInput) -> str:
    """The summary as Markdown."""
    audit = given.audit
    lines = [
        f"# Backdoor audit: {_inline(audit['verdict'], 60)}",
        "",
        f"**{_own(headline(audit))}** {advice(audit)}",
        "",
        f"- Data: {_inline(audit['data'], 200)}",
        *([f"- SHA-256 of the data: {_inline(audit['data_sha256'], 80)}"] if audit["data_sha256"] else []),
        f"- Model: {_inline(audit['model'], 200)}",
        *[f"- {_inline(reason, 400)}" for reason in audit["reasons"]],
        "",
        "## In numbers",
        "",
        *_numbers(audit),
        "",
        *_after(given),
        "## Tests",
        "",
        *_table(
            ["test", "value", "p value", "what it means"],
            [
                [
                    _inline(test["name"], 120),
                    numbers.number(test["value"]),
                    _own(numbers.p_value(test["p_value"])),
                    _inline(test["note"], 400),
                ]
                for test in audit["tests"]
            ],
        ),
        "",
        "## Phrases that recur among the flagged",
        "",
        *[line for cluster in audit["clusters"] for line in _cluster(cluster)],
        *([] if audit["clusters"] else ["None recurs more than elsewhere."]),
        "",
        "## Most suspicious samples",
        "",
        *_table(
            ["sample", "suspicion", "response in the data", "answer without what it hangs on"],
            [_sample(row) for row in given.flagged[:MAX_LISTED]],
        ),
        "",
        "## What was assumed",
        "",
        *_list(audit["assumptions"]),
        "",
        "## What this audit cannot detect",
        "",
        *_list(audit["blind_spots"]),
        "",
        "## Rows set aside",
        "",
        *_list([f"{row['place']}: {row['reason']}" for row in audit["set_aside"]], "none"),
        *(["", "## Files beside the data, not read", "", *_list(audit["unread"])] if audit["unread"] else ()),
    ]
    return "\n".join(lines) + "\n"


def _numbers(audit: dict[str, Any]) -> list[str]:
    ends, cost, truth = audit["estimated_rate_interval"], audit["cost"], audit["truth"]
    rows = [
        ["samples", numbers.number(audit["samples"])],
        ["turns", numbers.number(audit["turns"])],
        ["samples without image", numbers.number(audit["without_image"])],
        ["flagged", numbers.number(audit["flagged"])],
        [
            "estimated poison rate",
            numbers.percent(audit["estimated_rate"]) + (f" (95% interval {numbers.interval(ends)})" if ends else ""),
        ],
        ["threshold of suspicion", numbers.number(audit["threshold"])],
        ["false-alarm rate", numbers.percent(audit["false_alarm_rate"])],
    ]
    if choice := audit["mask_ratio"]:
        worth = mask_ratio_worth(choice)
        rows.append(["mask ratio to rewrite every answer", f"{numbers.percent(choice['ratio'])} ({worth})"])
    if cost:
        rows += [
            ["time", numbers.duration(cost["seconds"])],
            ["the same in forward passes a sample", numbers.number(cost["forward_equivalents_per_sample"])],
            ["cost in detail", _inline(cost["detail"], 600)],
        ]
    if truth:
        rows += [
            ["AUROC against the known labels", numbers.number(truth["auroc"])],
            ["AUROC of suspicion alone", numbers.number(truth["auroc_suspicion"])],
            ["precision", numbers.percent(truth["precision"])],
            ["recall", numbers.percent(truth["recall"])],
            ["poisoned samples", numbers.number(truth["poisoned"])],
        ]
        if missing := truth.get("missing"):
            rows.append(["poisoned samples that are not in the data", numbers.number(missing)])
    return _table(["quantity", "value"], rows)


def _after(given: ReportInput) -> list[str]:
    verify, lines = given.verify, []
    if verify:
        lines += [
            f"- Audit of the recovered model: {_inline(verify['verdict'], 60)}, {numbers.number(verify['flagged'])} of "
            f"{numbers.counted(verify['samples'], 'sample')} flagged",
            *[f"  - {_inline(reason, 400)}" for reason in verify["reasons"]],
            *[
                f"- Answers of the recovered model that hold {_inline(row['phrase'], 200)}: {_of(row['clean'])} on "
                f"pictures as they are, {_of(row['triggered'])} with the trigger candidate pasted in"
                + (f": {_own(said)}" if (said := outcome_in_words(row)) else "")
                for row in verify["residual"]
            ],
            "",
        ]
    if given.evaluation:
        columns = numbers.table_columns(given.evaluation)
        rows = [
            [_inline(row.get("name", ""), 120), *[_cell(row, column) for column in columns]] for row in given.evaluation
        ]
        lines += [*_table(["model", *[_inline(numbers.column_title(column), 60) for column in columns]], rows), ""]
    return ["## After the defence", "", *lines] if lines else []


def _cluster(cluster: dict[str, Any]) -> list[str]:
    paste = cluster.get("paste")
    words = WORDS[cluster["found_by"]]
    lines = [f"- {_inline(cluster['phrase'], 400)}: {_own(found_where(cluster))}"]
    if cluster["said_instead"]:
        said = ", ".join(_inline(word, 60) for word in cluster["said_instead"])
        lines.append(f"  - {words.without}, most of those tried say instead: {said}")
    if more := found_more(cluster):
        lines.append(f"  - {more}")
    if paste:
        lines.append(
            f"  - {words.planting} brings the phrase in "
            f"{_of((paste['successes'], paste['trials']))}, {words.planting_control} in "
            f"{_of((paste['control_successes'], paste['control_trials']))}; p = "
            f"{_own(numbers.p_value(paste['p_value']))}"
        )
    else:
        lines.append(f"  - {why_untested(cluster)}")
    return lines


def _sample(row: dict[str, Any]) -> list[str]:
    """The turn that made the sample suspicious."""
    turn: dict[str, Any] = max(row["turns"], key=lambda turn: turn.get("suspicion") or 0.0, default={})
    masked_answer = turn.get("masked_answer")
    return [
        _inline(row["id"], 80),
        numbers.number(row["suspicion"]),
        _inline(turn.get("response", ""), 160),
        numbers.NOT_MEASURED if masked_answer is None else _inline(masked_answer, 160),
    ]


def _cell(row: dict[str, Any], column: str) -> str:
    text = numbers.table_cell(row, column)
    return text if isinstance(row.get(column), int | float | None) else _inline(text, 120)


def _of(counts: Any) -> str:
    hits, of = counts
    return f"{numbers.number(hits)} of {numbers.number(of)} ({numbers.percent(hits / of if of else None)})"


def _list(items: Any, nothing: str = "nothing is stated") -> list[str]:
    shown = [f"- {_inline(item, 600)}" for item in items[:MAX_LISTED]] or [f"- {nothing}"]
    return shown + ([f"- … {len(items) - MAX_LISTED:,} more"] if len(items) > MAX_LISTED else [])


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return ["None."]
    return markdown_table(head, rows).split("\n")


def _own(text: str) -> str:
    """Our own text, made of numbers and words: a “<” in it must not open a tag."""
    return text.replace("<", "&lt;")


def _inline(text: object, limit: int) -> str:
    """Text from the data: as it is where nothing in it could be markup, otherwise as a code span, where nothing is."""
    shown = " ".join(plain(text, limit).split())
    if _PROSE.fullmatch(shown):
        return shown
    if not shown:
        return "(empty)"
    # The fence is longer than any run of back-ticks inside; a space parts it from one at the ends.
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if shown[0] == "`" or shown[-1] == "`" else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


# Words, numbers and the punctuation between them. A dot inside a word would make a link of it on some sites.
_PROSE = re.compile(r"[A-Za-z](?:[A-Za-z0-9 ,;:()%=+'\"’“”–…-]|\.(?= |$)|(?<=\d)\.(?=\d))*")
