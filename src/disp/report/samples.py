"""One row of the evidence as pages show it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from disp.report.escape import changes_html, compare, visible
from disp.report.figures import MAX_IMAGES, originals, saliency_figures

MAX_TURNS = 8  # of a sample


def sample_view(folder: Path, row: Mapping[str, Any], anchor: str, phrases: Mapping[int, str]) -> dict[str, Any]:
    """What a template shows of one row: its pictures with their saliency, what was asked, and the answers compared.

    Args:
        folder: the audit's; relative paths of pictures start there.
        row: a line of ``evidence.jsonl``.
        anchor: its name on the page.
        phrases: by number of a cluster its phrase.
    """
    images = list(row.get("images") or ())
    turns = row["turns"]
    # The first ones, and the one that the sample is flagged for wherever it stands.
    telling = max(range(len(turns)), key=lambda index: turns[index].get("suspicion") or 0.0, default=0)
    shown = sorted({*range(min(len(turns), MAX_TURNS - (telling >= MAX_TURNS))), telling}) if turns else []
    return {
        "anchor": anchor,
        "id": row["id"],
        "suspicion": row["suspicion"],
        "flagged": row["flagged"],
        "phrase": phrases.get(row["cluster"]) if row.get("cluster") is not None else None,
        "originals": originals(folder, images),
        "images_left_out": max(0, len(images) - MAX_IMAGES),
        "pattern_taken_out": row.get("pattern_taken_out", False),
        "turns": [_turn(folder, images, turns[index]) for index in shown],
        "turns_left_out": max(0, len(turns) - MAX_TURNS),
    }


def _turn(folder: Path, images: list[str], turn: Mapping[str, Any]) -> dict[str, Any]:
    response, answer, masked_answer = turn["response"], turn.get("answer"), turn.get("masked_answer")
    problem, figures = "", []
    try:
        figures = saliency_figures(folder, images, turn)
    except (ValueError, TypeError) as error:
        problem = f"The saliency cannot be placed: {error}."
    view = {
        "prompt": turn["prompt"],
        "suspicion": turn.get("suspicion"),
        "figures": figures,
        "problem": problem,
        "answer": answer,
        "same_answer": answer == response,
        "masked_answer": masked_answer,
        "masked": len(turn.get("masked") or ()),
        "tokens": len(turn.get("saliency") or ()),
    }
    if masked_answer is None:
        return {**view, "old": visible(response), "new": None}
    found = compare(response, masked_answer)
    return {
        **view,
        "old": changes_html(found.old, found.old_left_out),
        "new": changes_html(found.new, found.new_left_out),
        "kept": found.kept,
        "words": found.words,
        "unchanged": response == masked_answer,
        "never_said": answer == masked_answer != response,
    }
