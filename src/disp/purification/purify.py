"""Diffusion Self-Purification of a fine-tuning set: saliency, masking, regeneration (arXiv 2602.22246).

The compromised model rewrites its own training answers while the visual tokens that matter most to them are masked.
Three modes: "all" rewrites every answer, as the paper does; "selective" only the answers that do not survive the
masking of a few salient tokens; "random" masks at random and exists to show that it does not help.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from disp.data.dataset import Dataset, identity
from disp.data.sample import Query, Sample, batches, queries_of, unanswered
from disp.data.saving import data_path, link_images, save_dataset
from disp.decoding.generate import answers_of
from disp.decoding.samplers import own_settings
from disp.errors import DispError
from disp.files import append_jsonl, claim, read_finished_jsonl, write_json, write_jsonl
from disp.models.fingerprint import fingerprint
from disp.models.interface import MDLM, Prefix
from disp.progress import ProgressBar, no_progress
from disp.purification.config import PurifyConfig
from disp.suspicion.carriers import Pattern, without_patterns
from disp.suspicion.evidence import Evidence, evidence_masks, salient_masks, sample_suspicion, suspicious_query
from disp.suspicion.masking import mask_random
from disp.suspicion.places import tokens_at
from disp.suspicion.scoring import score
from disp.suspicion.threshold import suspicion_threshold


@dataclass(frozen=True)
class Purified:
    """The result of a purification.

    Attributes:
        dataset: the purified set.
        rewritten: ids of the samples whose answers were regenerated.
        left_out: ids of those of them that are not in the purified set.
        threshold: the suspicion above which a sample was rewritten, in "selective" mode.
        evidence: one a turn, by key.
    """

    dataset: Dataset
    rewritten: tuple[str, ...]
    left_out: tuple[str, ...]
    threshold: float | None
    evidence: Mapping[str, Evidence]


def purify(
    model: MDLM,
    dataset: Dataset,
    config: PurifyConfig,
    out: Path,
    *,
    evidence: Mapping[str, Evidence] | None = None,
    rewrite: Collection[str] | None = None,
    patterns: Mapping[str, Pattern] | None = None,
    leave_out: Callable[[Sample], bool] | None = None,
    progress: ProgressBar = no_progress,
) -> Purified:
    """Purify a fine-tuning set and write it in its own format.

    ``out`` receives ``data.json`` or ``data.jsonl`` and a link ``images`` to the input's images, ``evidence.jsonl``
    with one row a sample (saliency, masked tokens, old and new answers), and ``purify.json`` with the configuration
    and the counts. A killed run goes on where it stopped.

    Args:
        model: the compromised model.
        dataset: its fine-tuning set.
        config: see `PurifyConfig`.
        out: folder of the run.
        evidence: what `score` found before, to share it among several runs.
        rewrite: ids of the samples to rewrite, as an audit flagged them, instead of "selective" mode's own choice.
        patterns: by id of a sample what is taken out of its pictures where it is rewritten, instead of masking
            tokens; see `disp.auditing.result.Audit.patterns`. The pictures in the purified set stay as they are.
        leave_out: of a rewritten sample, whether it is left out of the purified set; see
            `disp.auditing.result.Audit.still_planted`. It is counted and named.
        progress: opened with a description and a total for each long step; see `disp.progress`.

    Raises:
        DispError: ``out`` holds a run with another model, configuration or data, or no sample is left.
    """
    patterns = patterns or {}
    config = replace(config, decode=config.decode or own_settings(model))
    chosen_by_caller = None if rewrite is None else sorted(rewrite)
    claim(
        out / "run.json",
        {
            "weights": fingerprint(model),
            "config": asdict(config),
            **identity(dataset),
            "rewrite": chosen_by_caller,
            "patterns": sorted(patterns),
        },
        "a purification",
        ignore=("batch_size",),
    )
    samples = dataset.samples
    asked = [config.asked(sample) for sample in samples]
    if evidence is None:
        selective = config.mode == "selective"
        with progress("scoring", len(queries_of(asked))) as advance:
            evidence = score(
                model, asked, config.scoring, out / "scores.jsonl", counterfactual=selective, progress=advance
            )
    # 1. Which samples are rewritten.
    threshold = None
    chosen = [sample for sample in asked if any(evidence[key].saliency for key in sample.keys)]
    if rewrite is not None:
        asked_for = frozenset(rewrite)
        chosen = [sample for sample in chosen if sample.id in asked_for]
    elif config.mode == "selective":
        suspicion = np.array([sample_suspicion(sample, evidence) for sample in chosen])
        threshold = suspicion_threshold(suspicion, config.scoring.least_suspicion)
        chosen = [sample for sample, value in zip(chosen, suspicion, strict=True) if value > threshold]
    # 2. Regenerate them under masking.
    with progress("rewriting", len(queries_of(chosen))) as advance:
        answers, masks = _rewrite(model, chosen, evidence, patterns, config, out, advance)
    rewritten = tuple(sample.id for sample in chosen)
    again = set(rewritten)
    purified = [
        sample.with_responses(
            [answers.get(key, turn.response) for key, turn in zip(sample.keys, sample.turns, strict=True)]
        )
        if sample.id in again
        else sample
        for sample in samples
    ]
    left_out = tuple(sample.id for sample in purified if leave_out and sample.id in again and leave_out(sample))
    gone = set(left_out)
    kept = [sample for sample in purified if sample.id not in gone]
    if not kept:
        raise DispError(f"{dataset.path}: every row was to be left out; nothing remains to train on")
    # 3. Write the set and the evidence.
    path = data_path(dataset, out)
    save_dataset(kept, path, dataset.image_root, like=dataset)
    link_images(dataset, out)
    write_jsonl(out / "evidence.jsonl", _evidence_rows(asked, purified, again, gone, evidence, masks, patterns))
    summary = {
        "config": asdict(config),
        "samples": len(samples),
        "rewritten": len(rewritten),
        "left_out": list(left_out),
        "without_image": sum(not sample.images for sample in samples),
        "threshold": threshold,
        "set_aside": [asdict(problem) for problem in dataset.problems],
    }
    write_json(out / "purify.json", summary)
    result = replace(dataset, samples=tuple(kept), path=path)
    return Purified(result, rewritten, left_out, threshold, evidence)


def _rewrite(
    model: MDLM,
    samples: Sequence[Sample],
    evidence: Mapping[str, Evidence],
    patterns: Mapping[str, Pattern],
    config: PurifyConfig,
    out: Path,
    progress: Callable[[int], None],
) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """New answers and masked visual tokens by query key. Later turns see the new answers of the earlier ones."""
    file = out / "responses.jsonl"
    answers: dict[str, str] = {}
    masks: dict[str, tuple[int, ...]] = {}
    for row in read_finished_jsonl(file):
        answers[row["key"]], masks[row["key"]] = row["response"], tuple(row["masked"])
    progress(len(answers))
    separators = config.scoring.saliency.separators
    # The most suspicious turn says where the trigger is, for all turns of the sample.
    told_by = {sample.id: suspicious_query(sample, evidence) for sample in samples}
    for turn in range(max((len(sample.turns) for sample in samples), default=0)):
        for batch in batches(unanswered(samples, turn, answers), config.batch_size):
            prefix = model.encode(without_patterns(batch, patterns))
            masked = _masks(model, batch, prefix, told_by, evidence, config)
            masked[[index for index, query in enumerate(batch) if query.sample_id in patterns]] = False
            hidden = prefix.with_masked(masked, model.mask_embedding)
            texts = answers_of(model, hidden, config.decode, keys=[query.key for query in batch], seed=config.seed)
            rows = []
            for index, (query, text) in enumerate(zip(batch, texts, strict=True)):
                tokens = masked[index, prefix.scored(separators)[index]].nonzero()[:, 0].tolist()
                rows.append({"key": query.key, "masked": tokens, "response": text})
                answers[query.key], masks[query.key] = text, tuple(tokens)
            append_jsonl(file, rows)
            progress(len(batch))
    return answers, masks


def _masks(
    model: MDLM,
    batch: Sequence[Query],
    prefix: Prefix,
    told_by: Mapping[str, Query],
    evidence: Mapping[str, Evidence],
    config: PurifyConfig,
) -> Tensor:
    """The visual tokens to mask, bool ``[B, P]``; ``told_by`` is the most suspicious turn of each sample."""
    scored, rounding = prefix.scored(config.scoring.saliency.separators), config.rounding
    if config.mode == "random":
        keys = [query.key for query in batch]
        return mask_random(scored, config.mask_ratio, keys, config.seed, rounding=rounding)
    if config.mode == "all":
        return salient_masks(batch, scored, evidence, config.mask_ratio, rounding=rounding)
    found = []
    for query in batch:
        own, other = evidence[query.key], told_by[query.sample_id]
        found.append(replace(own, hangs_on=tokens_at(model, query, own, other, evidence[other.key])))
    return evidence_masks(prefix.visual_mask, found)


def _evidence_rows(
    samples: Sequence[Sample],
    purified: Sequence[Sample],
    rewritten: set[str],
    left_out: set[str],
    evidence: Mapping[str, Evidence],
    masks: dict[str, tuple[int, ...]],
    patterns: Collection[str],
) -> Iterator[dict[str, Any]]:
    for before, after in zip(samples, purified, strict=True):
        turns = []
        for query, turn in zip(before.queries, after.turns, strict=False):  # of the answers that were looked at
            found = evidence[query.key]
            turns.append(
                {
                    "prompt": query.prompt,
                    "old": query.response,
                    "new": turn.response,
                    "suspicion": found.suspicion,
                    "masked": list(masks.get(query.key, ())),
                    "saliency": list(found.saliency),
                    "locations": [list(place) for place in found.locations],
                }
            )
        yield {
            "id": before.id,
            "rewritten": before.id in rewritten,
            "left_out": before.id in left_out,
            "pattern_taken_out": before.id in rewritten and before.id in patterns,
            "turns": turns,
        }
