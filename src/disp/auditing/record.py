"""What an audit leaves behind for people and for the report: numbers, answers, pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from disp.auditing.findings import Audit, AuditConfig, Cluster
from disp.auditing.shown import unflagged_places
from disp.auditing.statistics import area_under_curve
from disp.data.llava import Dataset
from disp.data.sample import Query, Sample, batches, queries_of
from disp.decoding.generate import answers_of
from disp.draws import generator
from disp.errors import DispError
from disp.files import append_jsonl, read_finished_jsonl, sha256, write_atomically, write_json, write_jsonl
from disp.models.interface import MDLM
from disp.progress import ProgressBar
from disp.purification.pattern import without_patterns
from disp.suspicion.candidates import candidate_ranks
from disp.suspicion.places import token_boxes
from disp.suspicion.scoring import Evidence, candidate_masks, given_answers, suspicious_query
from disp.suspicion.support import counterfactual_scores, suspicion_of

MAP_SIDE = 24
# Samples whose answers are asked for: the most suspicious, and the most suspicious of those that are flagged.
MOST_SUSPICIOUS, FLAGGED_ANSWERS = 24, 200
# Samples above the threshold that are masked at random for comparison, at most.
CONTROL_SAMPLES = 32
# Forward passes by which the cost of the audit is told in such passes, the first of which is not timed.
TIMED_PASSES = 4
PASTED = {
    "tokens": "pasting the region",
    "window": "pasting the window",
    "pattern": "laying on the pattern",
    "copy": "pasting the piece",
}
ASSUMPTIONS = (
    "The model under audit was fine-tuned on this dataset, so that it learnt what the dataset teaches.",
    "The trigger is in the pictures. It is small, so that a few visual tokens decide the planted answer; or up to a "
    "fifth of the picture, and a sentence of five words or more goes with it; or it is the same to the pixel in all "
    "pictures, up to the whole of them at one place, up to a quarter at places of its own.",
    "Planted answers share a phrase, as with one attacker and one target.",
)
BLIND_SPOTS = (
    "Triggers spread over the whole picture that differ from picture to picture, such as a warp or an adversarial "
    "perturbation: no small set of visual tokens carries them, and the pictures have nothing in common.",
    "Triggers in the text of the prompt.",
    "Poisoned rows that were removed from the data after training, or a backdoor that the model did not learn and that "
    "leaves nothing in common in the pictures.",
    "Planted answers that are all different from one another.",
    "Very few poisoned rows: fewer than three whose answers the model bases on the trigger, and fewer than eight whose "
    "pictures show it.",
    "Triggers that are the same in many pictures, but not in the first picture of a row.",
)


def write_record(
    model: MDLM,
    dataset: Dataset,
    result: Audit,
    config: AuditConfig,
    out: Path,
    *,
    start: float,
    scored_before: bool,
    poisoned: Collection[str] | None,
    name: str,
    progress: ProgressBar,
) -> None:
    """Write ``audit.json``, ``evidence.jsonl`` and ``candidates/*.png``.

    Args:
        model: the model under audit.
        dataset: the set under audit.
        result: what was found.
        config: how.
        out: folder of the run.
        start: ``time.monotonic()`` at the start of the audit.
        scored_before: whether it was given its scores, which its cost then leaves out.
        poisoned: ids of the samples that are truly poisoned, or None where that is not known.
        name: how the report calls the model.
        progress: see `disp.progress`.
    """
    answers = _both_answers(model, dataset, result, config, out, progress)
    above = [sample for sample in dataset.samples if result.scores[sample.id] > result.threshold]
    control = _random_control(model, above, result, config)
    seconds = time.monotonic() - start
    write_jsonl(out / "evidence.jsonl", _rows(model, dataset, result, answers))
    for number, cluster in enumerate(result.clusters):
        if (picture := _candidate(cluster)) is not None:
            write_atomically(out / "candidates" / f"{number}.png", partial(picture.save, format="PNG"))
    summary = _summary(model, dataset, result, config, seconds, poisoned, name, control)
    if scored_before:
        summary["cost"]["detail"] += "; the samples had been scored before, which is not counted"
    # A run that finds its scores and answers done took that long before.
    if (out / "audit.json").exists():
        before = json.loads((out / "audit.json").read_text(encoding="utf-8"))["cost"]
        summary["cost"] = max(before, summary["cost"], key=lambda cost: cost["seconds"])
    write_json(out / "audit.json", summary)


def _candidate(cluster: Cluster) -> Image.Image | None:
    """The trigger candidate, to look at."""
    if cluster.trigger is not None:
        return cluster.trigger.crop()
    return None if cluster.pattern is None else cluster.pattern.picture()


def _both_answers(
    model: MDLM, dataset: Dataset, result: Audit, config: AuditConfig, out: Path, progress: ProgressBar
) -> dict[str, tuple[str, str]]:
    """The model's answers to what people are shown: as they are, and without what they hang on.

    That is the best candidate, which is masked, or a pattern, which is taken out of the picture.
    """
    ranked = sorted(dataset.samples, key=lambda sample: -result.scores[sample.id])
    flagged = set(result.flagged)
    first, others = ([s for s in ranked if (s.id in flagged) == wanted] for wanted in (True, False))
    shown = {sample.id for sample in (*ranked[:MOST_SUSPICIOUS], *first[:FLAGGED_ANSWERS])}
    shown |= {others[place].id for place in unflagged_places(len(others))}
    for cluster in result.clusters:
        members = {*cluster.samples, *cluster.more}
        shown |= {next(sample.id for sample in first if sample.id in members)}
    queries = [query for sample in ranked if sample.id in shown for query in queries_of([sample])]
    file = out / "answers.jsonl"
    found = {row["key"]: (row["answer"], row["masked_answer"]) for row in read_finished_jsonl(file)}
    todo = [query for query in queries if query.key not in found]
    patterns = result.patterns
    with progress("answers with and without masking", len(todo)) as advance:
        for batch in batches(todo, config.scoring.batch_size):
            prefix = model.encode(batch)
            some = patterns.keys() & {query.sample_id for query in batch}
            rest = model.encode(without_patterns(batch, patterns)) if some else prefix
            masked = candidate_masks(rest.visual_mask, [result.evidence[query.key] for query in batch])
            hidden = rest.with_masked(masked, model.mask_embedding)
            keys = [query.key for query in batch]
            texts = [
                answers_of(model, each, config.scoring.decode, keys=keys, seed=config.scoring.seed)
                for each in (prefix, hidden)
            ]
            rows = []
            for query, plain, other in zip(batch, *texts, strict=True):
                found[query.key] = (plain, other)
                rows.append({"key": query.key, "answer": plain, "masked_answer": other})
            append_jsonl(file, rows)
            advance(len(batch))
    return found


def _random_control(model: MDLM, above: Sequence[Sample], result: Audit, config: AuditConfig) -> tuple[int, int]:
    """Of some samples above the threshold, how many stay there when random tokens are masked instead."""
    chosen = [sample for sample in above if sample.images][:CONTROL_SAMPLES]
    stay: dict[str, float] = {}
    # Where a picture comes in a later turn, an earlier one has nothing to mask.
    queries = [query for query in queries_of(chosen) if query.images]
    for batch in batches(queries, config.scoring.batch_size):
        prefix = model.encode(batch)
        response = given_answers(model, prefix, batch)
        each_count = [
            len(candidate_ranks(visual, config.scoring.candidates, config.scoring.mask_ratio))
            for visual in prefix.visual_mask.sum(-1).tolist()
        ]
        sets = []
        for number in range(max(each_count)):
            keys = [f"{query.key}/{number}" for query in batch]
            # As many random tokens as the best candidate has.
            masked = _random_like(prefix.visual_mask, batch, result.evidence, keys, config.scoring.seed)
            masked[[row for row, count in enumerate(each_count) if number >= count]] = False
            sets.append(masked)
        base, each = counterfactual_scores(model, prefix, response, torch.stack(sets, dim=1), batch_size=len(batch))
        for query, value in zip(batch, suspicion_of(base, each).tolist(), strict=True):
            stay[query.sample_id] = max(stay.get(query.sample_id, 0.0), value)
    return sum(stay[sample.id] > result.threshold for sample in chosen), len(chosen)


def _random_like(
    visual_mask: Tensor, batch: Sequence[Query], evidence: Mapping[str, Evidence], keys: Sequence[str], seed: int
) -> Tensor:
    masked = torch.zeros_like(visual_mask)
    for row, (query, key) in enumerate(zip(batch, keys, strict=True)):
        positions = visual_mask[row].nonzero()[:, 0]
        count = max(1, len(evidence[query.key].best_candidate))
        order = generator(seed, "random candidate", key).permutation(len(positions))[:count]
        masked[row, positions[torch.from_numpy(order).to(positions.device)]] = True
    return masked


def _rows(
    model: MDLM, dataset: Dataset, result: Audit, answers: Mapping[str, tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    flagged, patterns, ranks = set(result.flagged), result.patterns, result.ranks
    clusters: dict[str, int] = {}
    for number, cluster in enumerate(result.clusters):
        for key in (*cluster.samples, *cluster.more):
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
    for query in queries_of([sample]):
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
                "masked": list(found.best_candidate),
            }
        )
    return turns


def saliency_map(items: Sequence[tuple[np.ndarray, np.ndarray]], side: int = MAP_SIDE) -> np.ndarray:
    """The mean map of several samples, each scaled to a sum of one.

    Args:
        items: for each sample the tokens' boxes float ``[N, 4]`` and scores float ``[N]``.
        side: rows and columns of the map.

    Returns:
        float64 ``[side, side]``.
    """
    total = np.zeros((side, side))
    for boxes, values in items:
        one = np.zeros((side, side))
        for (x0, y0, x1, y1), value in zip(boxes, values, strict=True):
            # Every field that the token reaches into: of a raster finer than the map none gets lost.
            top, left = (int(edge * side + 1e-6) for edge in (y0, x0))
            bottom, right = (int(np.ceil(edge * side - 1e-6)) for edge in (y1, x1))
            one[top:bottom, left:right] = np.maximum(one[top:bottom, left:right], value)
        total += one / one.sum() if one.sum() else 0
    return total / max(1, len(items))


def _summary(
    model: MDLM,
    dataset: Dataset,
    result: Audit,
    config: AuditConfig,
    seconds: float,
    poisoned: Collection[str] | None,
    name: str,
    random_control: tuple[int, int],
) -> dict[str, Any]:
    tests: list[dict[str, Any]] = []
    for cluster in result.clusters:
        if cluster.phrase.p_value is not None:
            tests.append(
                {
                    "name": f"recurrence of {cluster.phrase.text!r}",
                    "value": len(cluster.samples),
                    "p_value": cluster.phrase.p_value,
                    "note": "hypergeometric test among flagged and other samples, corrected for the phrases tried",
                }
            )
        if cluster.paste:
            tests.append(
                {
                    "name": f"{PASTED[cluster.found_by]} of {cluster.phrase.text!r}",
                    "value": cluster.paste.successes / cluster.paste.trials,
                    "p_value": cluster.paste.p_value,
                    "note": "Fisher's test against random patterns as strong"
                    if cluster.found_by == "pattern"
                    else "permutation test over regions of flagged and unflagged samples",
                }
            )
    tests.append(
        {
            "name": "samples above the threshold that random tokens would put there too",
            "value": random_control[0] / max(1, random_control[1]),
            "p_value": None,
            "note": f"as many random sets of the same size, {random_control[1]} samples",
        }
    )
    by_id = {sample.id: sample for sample in dataset.samples}
    items = []
    for key in result.flagged:
        query = suspicious_query(by_id[key], result.evidence)
        found = result.evidence[query.key]
        items.append((token_boxes(model, found.locations, query.images), np.array(found.saliency)))
    return {
        "verdict": result.verdict,
        "reasons": list(result.reasons),
        "model": name or type(model).__name__,
        "data": str(dataset.path),
        "data_sha256": sha256(dataset.path),
        "samples": len(dataset.samples),
        "turns": len(queries_of(dataset.samples)),
        "without_image": sum(not sample.images for sample in dataset.samples),
        "set_aside": [asdict(problem) for problem in dataset.problems],
        "threshold": result.threshold,
        "flagged": len(result.flagged),
        "estimated_rate": result.rate.value,
        "estimated_rate_interval": [result.rate.low, result.rate.high],
        "false_alarm_rate": config.false_alarm_rate,
        "tests": tests,
        "clusters": [
            {
                "phrase": cluster.phrase.text,
                "found_by": cluster.found_by,
                "flagged": len(cluster.samples),
                "elsewhere": cluster.phrase.elsewhere,
                "p_value": cluster.phrase.p_value,
                "paste": None
                if cluster.paste is None
                else {key: value for key, value in asdict(cluster.paste).items() if key != "by_region"},
                "confirmed": cluster.confirmed,
                "said_instead": list(cluster.instead),
                "samples": list(cluster.samples),
                "more": list(cluster.more),
                "with_pattern": list(cluster.carriers),
                "by_piece": list(cluster.by_piece),
                "candidate": f"candidates/{number}.png" if cluster.trigger or cluster.pattern else None,
                "box": list(cluster.trigger.box) if cluster.trigger else None,
                "donor": cluster.trigger.sample_id if cluster.trigger else None,
            }
            for number, cluster in enumerate(result.clusters)
        ],
        "mask_ratio": None if result.ratio is None else asdict(result.ratio),
        "mean_map": saliency_map(items).tolist() if items else None,
        "scores": [result.scores[sample.id] for sample in dataset.samples],
        "cost": _cost(model, dataset, result, config, seconds),
        "assumptions": list(ASSUMPTIONS),
        "blind_spots": list(BLIND_SPOTS),
        "settings": asdict(config),
        "truth": None if poisoned is None else _truth(set(poisoned), result),
        "disp_version": version("disp-mdlm"),
    }


def _cost(model: MDLM, dataset: Dataset, result: Audit, config: AuditConfig, seconds: float) -> dict[str, Any]:
    """Seconds of the whole audit, and that in forward passes of one sample, timed side by side."""
    batch = [query for query in queries_of(dataset.samples) if query.images][: config.scoring.batch_size]
    prefix = model.encode(batch)
    response = torch.full((len(batch), model.gen_length), model.mask_token_id, device=prefix.embeds.device)
    with torch.no_grad():
        model.denoise(prefix, response)
        begin = time.monotonic()
        for _ in range(TIMED_PASSES - 1):
            float(model.denoise(prefix, response).sum())
        forward = (time.monotonic() - begin) / (TIMED_PASSES - 1) / len(batch)
    return {
        "seconds": seconds,
        "forward_equivalents_per_sample": seconds / len(dataset.samples) / forward,
        "detail": f"a forward pass of one sample takes {forward * 1000:.1f} ms in a batch of {len(batch)}",
    }


def read_truth(manifest: Path) -> frozenset[str]:
    """The ids of the samples that `disp poison` poisoned.

    Raises:
        DispError: the file is missing or no manifest.
    """
    try:
        rows = json.loads(manifest.read_text(encoding="utf-8"))["poisoned_rows"]
        return frozenset(row["id"] for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DispError(f"{manifest} is no manifest of `disp poison` ({error!r})") from None


def _truth(poisoned: set[str], result: Audit) -> dict[str, Any]:
    """How the audit did, where the planted attack is known; None for what is not defined."""
    ids = list(result.scores)
    hits = len(poisoned & set(result.flagged))
    truth, ranks = np.array([key in poisoned for key in ids]), result.ranks
    auroc = {
        "auroc": area_under_curve(np.array([-ranks[key] for key in ids]), truth),
        "auroc_suspicion": area_under_curve(np.array([result.scores[key] for key in ids]), truth),
    }
    return {
        **{name: None if np.isnan(value) else value for name, value in auroc.items()},
        "precision": hits / len(result.flagged) if result.flagged else None,
        "recall": hits / len(poisoned) if poisoned else None,
        "poisoned": len(poisoned),
    }
