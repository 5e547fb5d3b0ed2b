"""What an audit leaves behind for people and for the report: numbers, answers, pictures. It only writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from disp.auditing import wording
from disp.auditing.config import AuditConfig
from disp.auditing.hypothesis import Finding
from disp.auditing.result import Audit
from disp.auditing.saliency_map import saliency_map
from disp.data.cells import write_csv
from disp.data.dataset import Dataset
from disp.data.sample import Sample, queries_of
from disp.data.saving import name_in
from disp.data.stored import data_sha256
from disp.files import write_atomically, write_json, write_jsonl
from disp.models.interface import MDLM
from disp.suspicion.evidence import suspicious_query
from disp.suspicion.places import token_boxes
from disp.words import printable

# The columns of flagged.csv.
FLAGGED = ("id", "picture", "phrase", "suspicion", "reason")


@dataclass(frozen=True)
class Measured:
    """What is written beside what an audit found.

    Attributes:
        name: how the report calls the model; its class if empty.
        answers: by key the model's answers to some turns; see `disp.auditing.answers.shown_answers`.
        random_control: see `disp.auditing.random_control.random_control`.
        cost: see `disp.auditing.cost.cost_of`.
        truth: see `disp.auditing.truth.audit_against`; None where the truth is not known.
    """

    name: str
    answers: Mapping[str, tuple[str, str]]
    random_control: tuple[int, int]
    cost: dict[str, Any]
    truth: dict[str, float | None] | None


def write_record(
    model: MDLM, dataset: Dataset, result: Audit, config: AuditConfig, measured: Measured, out: Path
) -> None:
    """Write ``audit.json``, ``evidence.jsonl``, ``flagged.csv`` and ``candidates/*.png``.

    Args:
        model: the model under audit, which says where its tokens lie.
        dataset: the set under audit.
        result: what was found.
        config: how.
        measured: what is written beside it.
        out: folder of the run.
    """
    write_jsonl(out / "evidence.jsonl", _rows(model, dataset, result, measured.answers), checked=True)
    for number, finding in enumerate(result.findings):
        if (picture := _candidate(finding)) is not None:
            write_atomically(out / "candidates" / f"{number}.png", partial(picture.save, format="PNG"))
    summary = _summary(model, dataset, result, config, measured)
    # A run that finds its scores and answers done took that long before.
    # A damaged record is written anew.
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        before = json.loads((out / "audit.json").read_text(encoding="utf-8"))["cost"]
        summary["cost"] = max(before, summary["cost"], key=lambda cost: float(cost["seconds"]))
    write_csv(out / "flagged.csv", FLAGGED, _flagged(dataset, result, summary["clusters"]))
    write_json(out / "audit.json", summary)


def _flagged(
    dataset: Dataset, result: Audit, clusters: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str | float, ...]]:
    """The flagged rows, the most suspicious first, under the names `FLAGGED`."""
    by_id = {sample.id: sample for sample in dataset.samples}
    why = wording.why_flagged(clusters)
    for key in sorted(result.flagged, key=result.ranks.__getitem__):
        phrase, reason = why[key]
        files = [source for source in by_id[key].images if isinstance(source, Path)]
        pictures = " | ".join(str(name_in(dataset.image_root, file)) for file in files)
        # Ids and names of files are read again; the phrase is for people, in a terminal too.
        yield key, pictures, printable(phrase), round(result.scores[key], 4), reason


def _candidate(finding: Finding) -> Image.Image | None:
    """The trigger candidate, to look at."""
    candidate = finding.trigger or finding.pattern
    return None if candidate is None else candidate.picture()


def _rows(
    model: MDLM, dataset: Dataset, result: Audit, answers: Mapping[str, tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    flagged, patterns, ranks = set(result.flagged), result.patterns, result.ranks
    clusters: dict[str, int] = {}
    for number, finding in enumerate(result.findings):
        for key in finding.all_samples:
            clusters.setdefault(key, number)
    for sample in dataset.samples:
        yield {
            "id": sample.id,
            "suspicion": result.scores[sample.id],
            "rank": ranks[sample.id],
            "flagged": sample.id in flagged,
            "cluster": clusters.get(sample.id),
            "pattern_taken_out": sample.id in patterns,
            "images": [str(source) if isinstance(source, Path) else "(in memory)" for source in sample.images],
            "turns": _turns(model, sample, result, answers),
        }


def _turns(model: MDLM, sample: Sample, result: Audit, answers: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
    turns = []
    for query in sample.queries:
        found = result.evidence[query.key]
        boxes = token_boxes(model, found.locations, query.images)
        plain, masked = answers.get(query.key, (None, None))
        turns.append(
            {
                "prompt": query.prompt,
                "response": query.response,
                "answer": plain,
                "masked_answer": masked,
                "suspicion": found.suspicion,
                "saliency": list(found.saliency),
                "boxes": [[round(float(v), 4) for v in box] for box in boxes],
                "image_index": [place[0] for place in found.locations],
                "masked": list(found.hangs_on),
            }
        )
    return turns


def _summary(
    model: MDLM,
    dataset: Dataset,
    result: Audit,
    config: AuditConfig,
    measured: Measured,
) -> dict[str, Any]:
    by_id = {sample.id: sample for sample in dataset.samples}
    items = []
    for key in result.flagged:
        query = suspicious_query(by_id[key], result.evidence)
        found = result.evidence[query.key]
        items.append((token_boxes(model, found.locations, query.images), np.array(list(found.saliency))))
    return {
        "verdict": result.verdict,
        "reasons": list(result.reasons),
        "model": measured.name or type(model).__name__,
        "data": str(dataset.path),
        "data_sha256": data_sha256(dataset),
        "samples": len(dataset.samples),
        "turns": len(queries_of(dataset.samples)),
        "without_image": sum(not sample.images for sample in dataset.samples),
        "set_aside": [asdict(problem) for problem in dataset.problems],
        "fields_left_out": list(dataset.left_out),
        "unread": list(dataset.unread),
        "unread_parts": list(dataset.unread_parts),
        "answers_cut": result.missed.answers_cut,
        "answers_without_words": result.missed.wordless,
        "threshold": result.threshold,
        "flagged": len(result.flagged),
        "estimated_rate": result.rate.value,
        "estimated_rate_interval": [result.rate.low, result.rate.high],
        "false_alarm_rate": config.false_alarm_rate,
        "tests": wording.made_tests(result.findings, measured.random_control),
        "clusters": [
            {
                "phrase": finding.phrase.text,
                "found_by": finding.found_by,
                "flagged": len(finding.samples),
                "elsewhere": finding.hypothesis.elsewhere,
                "p_value": finding.hypothesis.p_value,
                "paste": None
                if finding.test is None
                else {key: value for key, value in asdict(finding.test).items() if key != "by_region"},
                "confirmed": finding.confirmed,
                "said_instead": list(finding.instead),
                "samples": list(finding.samples),
                "more": list(finding.more),
                "with_pattern": list(finding.with_pattern),
                "by_piece": list(finding.with_copy),
                "by_sentence": list(finding.by_sentence),
                "candidate": f"candidates/{number}.png" if finding.trigger or finding.pattern else None,
                "box": list(finding.trigger.box) if finding.trigger else None,
                "donor": finding.trigger.sample_id if finding.trigger else None,
            }
            for number, finding in enumerate(result.findings)
        ],
        "mask_ratio": None if result.ratio is None else asdict(result.ratio),
        "mean_map": saliency_map(items).tolist() if items else None,
        "scores": [result.scores[sample.id] for sample in dataset.samples],
        "cost": measured.cost,
        "assumptions": list(wording.ASSUMPTIONS),
        "blind_spots": list(wording.BLIND_SPOTS),
        "settings": asdict(config),
        "truth": measured.truth,
        "disp_version": version("disp-mdlm"),
    }
