"""What an audit left in its folder, read for the report: every row is looked at, few are kept."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from disp.auditing.shown import unflagged_places
from disp.errors import DispError
from disp.files import checked_row

_REQUIRED = ("verdict", "samples", "flagged")
_OPTIONAL: Mapping[str, Any] = {
    "reasons": (), "model": "", "data": "", "data_sha256": "", "turns": None, "without_image": None, "set_aside": (),
    "threshold": None, "estimated_rate": None, "estimated_rate_interval": None, "false_alarm_rate": None, "tests": (),
    "clusters": (), "mean_map": None, "scores": (), "cost": None, "assumptions": (), "blind_spots": (), "settings": {},
    "truth": None, "disp_version": "", "residual": (), "mask_ratio": None,
    "unread": (), "unread_parts": (),
}  # fmt: skip


@dataclass(frozen=True)
class ReportInput:
    """Everything that a report is made of.

    Attributes:
        folder: where it was read from; relative paths in it start there.
        audit: ``audit.json``, with every key that may be absent filled in.
        verify: ``verify.json`` in the same way, if there is one.
        evaluation: the rows of ``evaluation.json``, none where there is no such file.
        flagged: rows of ``evidence.jsonl`` to be shown, the most suspicious first. The most
            suspicious row of each cluster is among them; where there are more clusters than rows to show, these are
            the most suspicious ones.
        unflagged: rows to be shown beside them: from the most suspicious of the unflagged to their median.
        index: id and suspicion of every flagged row, the most suspicious first.
    """

    folder: Path
    audit: dict[str, Any]
    verify: dict[str, Any] | None
    evaluation: list[dict[str, Any]]
    flagged: list[dict[str, Any]]
    unflagged: list[dict[str, Any]]
    index: list[tuple[str, float]] = field(default_factory=list)


def read_input(folder: Path, top: int) -> ReportInput:
    """Read an audit's folder.

    Args:
        folder: holds ``audit.json`` and ``evidence.jsonl``, and ``evaluation.json`` and ``verify.json`` where there
            was a defence.
        top: how many flagged samples are kept.

    Raises:
        DispError: a file is missing or damaged; the message names the place.
    """
    audit = read_audit(folder)
    verify_path, evaluation_path = folder / "verify.json", folder / "evaluation.json"
    verify = _with_defaults(_read_json(verify_path), verify_path) if verify_path.exists() else None
    evaluation = _read_json(evaluation_path).get("rows", []) if evaluation_path.exists() else []
    flagged, unflagged, index = _chosen(folder / "evidence.jsonl", audit["samples"], top)
    return ReportInput(
        folder=folder,
        audit=audit,
        verify=verify,
        evaluation=list(evaluation),
        flagged=flagged,
        unflagged=unflagged,
        index=index,
    )


def _chosen(
    path: Path, samples: int, top: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[tuple[str, float]]]:
    """The rows to show, and the index of the flagged ones.

    A first pass keeps one number a row, and of flagged ones the id, since a row may hold thousands of scores.
    """
    names: dict[int, str] = {}
    flagged: list[tuple[float, int]] = []
    unflagged: list[tuple[float, int]] = []
    strongest: dict[int, tuple[float, int]] = {}
    for number, row in all_evidence(path, samples):
        place = (-float(row["suspicion"]), number)
        (flagged if row["flagged"] else unflagged).append(place)
        if row["flagged"]:
            names[number] = str(row["id"])
        cluster = row.get("cluster")
        if row["flagged"] and cluster is not None:
            strongest[cluster] = min(strongest.get(cluster, place), place)
    first = set(heapq.nsmallest(top, strongest.values()))
    rest = [place for place in heapq.nsmallest(top + len(first), flagged) if place not in first]
    shown = sorted([*first, *rest[: top - len(first)]])
    unflagged.sort()
    beside = [unflagged[place] for place in unflagged_places(len(unflagged))]

    wanted = {number for _, number in (*shown, *beside)}
    kept = {number: row for number, row in evidence_rows(path) if number in wanted} if wanted else {}
    index = [(names[number], -place) for place, number in sorted(flagged)]
    return [kept[number] for _, number in shown], [kept[number] for _, number in beside], index


def all_evidence(path: Path, samples: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `evidence_rows`, where the file is to have a row for each sample.

    Raises:
        DispError: as `evidence_rows`, or rows are missing.
    """
    count = 0
    for found in evidence_rows(path):
        count += 1
        yield found
    if count != samples:
        raise DispError(f"{path}: {count} rows, but audit.json is about {samples} samples; run `disp audit` again")


def evidence_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every row of ``evidence.jsonl`` with the place where it begins, in bytes.

    Raises:
        DispError: the file is missing or damaged.
    """
    place = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                row = checked_row(line)
                if row is None:
                    raise DispError(
                        f"{path}, line {number}: damaged, or written by an older version; run `disp audit` again"
                    )
                if not {"id", "suspicion", "flagged", "turns"} <= row.keys():
                    raise DispError(f"{path}, line {number}: not a row of evidence; run `disp audit` again")
                yield place, row
                place += len(line)
    except FileNotFoundError:
        raise _missing(path) from None


def read_audit(folder: Path) -> dict[str, Any]:
    """``audit.json`` of an audit's folder, with every key that may be absent filled in.

    Raises:
        DispError: the file is missing or damaged.
    """
    return _with_defaults(_read_json(folder / "audit.json"), folder / "audit.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _missing(path) from None
    except ValueError as error:
        raise DispError(f"{path}: damaged ({error}); write it again") from None
    if not isinstance(value, dict):
        raise DispError(f"{path}: holds a {type(value).__name__} instead of an object; write it again")
    return value


def _with_defaults(value: dict[str, Any], path: Path) -> dict[str, Any]:
    absent = [key for key in _REQUIRED if key not in value]
    if absent:
        raise DispError(f"{path}: has no {', '.join(absent)}; write it again with `disp audit`")
    return {**_OPTIONAL, **value}


def _missing(path: Path) -> DispError:
    return DispError(f"{path}: no such file; run `disp audit` with this output folder first")
