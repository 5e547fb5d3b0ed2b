"""Diffusion Self-Purification of a fine-tuning set: saliency, masking, regeneration (arXiv 2602.22246).

The backdoored model rewrites its own training answers while the visual tokens that matter most to them are masked.
Three modes: "all" rewrites every answer, as the paper does; "selective" only the answers that do not survive the
masking of a few salient tokens; "random" masks at random and exists to show that it does not help.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from disp.data.dataset import Dataset, Problem
from disp.data.index import Index
from disp.data.sample import Sample, queries_of
from disp.data.saving import data_path, link_images, save_dataset
from disp.data.stored import check_apart, identity
from disp.decoding.samplers import own_settings
from disp.errors import DispError
from disp.files import claim, write_json, write_jsonl
from disp.locks import alone
from disp.models.fingerprint import fingerprint
from disp.models.interface import MDLM
from disp.progress import ProgressBar, no_progress
from disp.purification.config import PurifyConfig
from disp.purification.record import Done, evidence_rows
from disp.purification.remedies import REWRITE, Treatment
from disp.purification.treated import Treated, dropped, restored, rewritten
from disp.scale.workers import ALONE, Workers
from disp.suspicion.carriers import Pattern
from disp.suspicion.evidence import Evidence, sample_suspicion
from disp.suspicion.scoring import score
from disp.suspicion.threshold import suspicion_threshold


@dataclass(frozen=True)
class Purified:
    """The result of a purification.

    Attributes:
        dataset: the purified set.
        rewritten: ids of the samples whose answers were regenerated.
        left_out: ids of the samples that are not in the purified set.
        threshold: the suspicion above which a sample counts as poisoned, in "selective" mode.
        evidence: one a turn, by key.
        restored: ids of the samples that have trusted answers now.
        untrusted: samples that there were no trusted answers for, and why; they are among ``left_out``.
    """

    dataset: Dataset
    rewritten: tuple[str, ...]
    left_out: tuple[str, ...]
    threshold: float | None
    evidence: Mapping[str, Evidence]
    restored: tuple[str, ...] = ()
    untrusted: tuple[Problem, ...] = ()


@alone
def purify(
    model: MDLM,
    dataset: Dataset,
    config: PurifyConfig,
    out: Path,
    *,
    evidence: Mapping[str, Evidence] | None = None,
    rewrite: Collection[str] | None = None,
    patterns: Mapping[str, Pattern] | None = None,
    leave_out: Callable[[Sample, Sample], bool] | None = None,
    treatment: Treatment = REWRITE,
    workers: Workers = ALONE,
    progress: ProgressBar = no_progress,
) -> Purified:
    """Purify a fine-tuning set and write it in its own format.

    ``out`` receives the set in its own format (``data.json``, ``data.jsonl`` …; see `disp.data.saving.data_path`) and,
    where its rows name files, a link ``images`` to the input's images; ``evidence.jsonl``
    with one row a sample (saliency, masked tokens, old and new answers), and ``purify.json`` with the configuration
    and the counts; and ``decisions.jsonl`` with what a person decided, if one did. A killed run goes on where it
    stopped.

    Args:
        model: the backdoored model.
        dataset: its fine-tuning set.
        config: see `PurifyConfig`.
        out: folder of the run.
        evidence: what `score` found before, to share it among several runs.
        rewrite: ids of the samples to rewrite, as an audit flagged them, instead of "selective" mode's own choice.
        patterns: by id of a sample what is taken out of its pictures where it is rewritten, instead of masking
            tokens; see `disp.auditing.result.Audit.patterns`. The pictures in the purified set stay as they are.
        leave_out: of a sample as it was and as it was rewritten, whether it is left out of the purified set; see
            `disp.auditing.result.Audit.still_planted`. It is counted and named.
        treatment: what is done with the rows that are found, instead of rewriting them, and what a person decided. A
            row that a person takes for poisoned is left out, too, where all of its new answers are the old ones.
        workers: who scores and rewrites; see `disp.scale`. Of several processes the one that leads writes the set.
        progress: opened with a description and a total for each long step; see `disp.progress`.

    Raises:
        DispError: ``out`` holds a run with another model, configuration or data, or is the data's own folder; no
            sample is left; or the treatment does not fit the mode or the samples.
    """
    patterns, index = patterns or {}, Index(dataset.samples)
    _check(dataset, config, out, rewrite, treatment)
    config = replace(config, decode=config.decode or own_settings(model, profile="exact"))
    workers.wait_for(out / "run.json")
    run = {
        "weights": fingerprint(model),
        "config": asdict(config),
        **identity(dataset, index),
        "rewrite": None if rewrite is None else sorted(rewrite),
        "patterns": sorted(patterns),
        **treatment.identity(),
    }
    claim(out / "run.json", run, "a purification", ignore=("batch_size",))
    if treatment.decisions.by_id and workers.leads:
        write_jsonl(out / "decisions.jsonl", (each.to_json() for each in treatment.decisions.by_id.values()))
    asked = [config.asked(sample) for sample in dataset.samples]
    if evidence is None:
        evidence = _scored(model, asked, config, out / "scores.jsonl", workers, progress)
    # 1. Which samples count as poisoned.
    found, threshold = _suspicious(asked, evidence, config, rewrite)
    poisoned = treatment.decisions.over(found, index.by_id)
    # 2. What becomes of them.
    if treatment.remedy == "rewrite":
        treated = rewritten(
            model,
            asked,
            index,
            poisoned,
            evidence,
            patterns,
            config,
            out / "responses.jsonl",
            leave_out=partial(_still_poisoned, certain=treatment.decisions.ids("yes"), leave_out=leave_out),
            workers=workers,
            progress=progress,
        )
    elif treatment.trusted is not None:
        treated = restored(treatment.trusted, index, poisoned, strict=treatment.strict)
    else:
        treated = dropped(poisoned)
    result = _purified(dataset, treated, poisoned, threshold, evidence, treatment, data_path(dataset, out))
    # 3. Write the set and the evidence.
    if workers.leads:
        done = Done(treatment, frozenset(poisoned), treated.gone, treated.masks, patterns)
        rows = evidence_rows(asked, treated.over(dataset.samples), evidence, done)
        _write(result, dataset, rows, config, treatment, out)
    return result


def _check(
    dataset: Dataset, config: PurifyConfig, out: Path, rewrite: Collection[str] | None, treatment: Treatment
) -> None:
    """Raise `DispError` where what is asked for cannot be done."""
    treatment.check(dataset.samples)
    check_apart(dataset, out)
    if treatment.remedy != "rewrite" and rewrite is None and config.mode != "selective":
        raise DispError(
            f"mode {config.mode!r} takes every row for poisoned; --remedy {treatment.remedy} needs --mode selective"
        )


def _scored(
    model: MDLM, asked: Sequence[Sample], config: PurifyConfig, file: Path, workers: Workers, progress: ProgressBar
) -> dict[str, Evidence]:
    selective = config.mode == "selective"
    with progress("scoring", len(queries_of(asked))) as advance:
        return score(model, asked, config.scoring, file, counterfactual=selective, workers=workers, progress=advance)


def _suspicious(
    samples: Sequence[Sample], evidence: Mapping[str, Evidence], config: PurifyConfig, asked_for: Collection[str] | None
) -> tuple[list[str], float | None]:
    """Ids of the samples that the mode chooses, or of those asked for, and the threshold where there was one."""
    shown = [sample for sample in samples if any(evidence[key].saliency for key in sample.keys)]
    if asked_for is not None:
        wanted = frozenset(asked_for)
        return [sample.id for sample in shown if sample.id in wanted], None
    if config.mode != "selective":
        return [sample.id for sample in shown], None
    suspicion = np.array([sample_suspicion(sample, evidence) for sample in shown])
    threshold = suspicion_threshold(suspicion, config.scoring.least_suspicion)
    return [sample.id for sample, value in zip(shown, suspicion, strict=True) if value > threshold], threshold


def _still_poisoned(
    before: Sample, after: Sample, *, certain: Collection[str], leave_out: Callable[[Sample, Sample], bool] | None
) -> bool:
    """Whether a rewritten sample is left out all the same; ``certain`` are ids of those that a person decided on."""
    return bool(leave_out and leave_out(before, after)) or (after.id in certain and after.turns == before.turns)


def _purified(
    dataset: Dataset,
    treated: Treated,
    poisoned: Sequence[str],
    threshold: float | None,
    evidence: Mapping[str, Evidence],
    treatment: Treatment,
    path: Path,
) -> Purified:
    """What came of it; ``path`` is where the purified set is written.

    Raises:
        DispError: no sample is left.
    """
    kept = tuple(sample for sample in treated.over(dataset.samples) if sample.id not in treated.gone)
    if not kept:
        raise DispError(f"{dataset.path}: every row was to be left out; nothing remains to train on")
    answered, rewriting = tuple(treated.answers), treatment.remedy == "rewrite"
    return Purified(
        dataset=replace(dataset, samples=kept, path=path),
        rewritten=answered if rewriting else (),
        left_out=tuple(key for key in poisoned if key in treated.gone),
        threshold=threshold,
        evidence=evidence,
        restored=() if rewriting else answered,
        untrusted=treated.untrusted,
    )


def _write(
    result: Purified,
    dataset: Dataset,
    rows: Iterable[dict[str, Any]],
    config: PurifyConfig,
    treatment: Treatment,
    out: Path,
) -> None:
    """The purified set, ``evidence.jsonl`` of these rows, and ``purify.json``."""
    save_dataset(result.dataset.samples, result.dataset.path, dataset.image_root, like=dataset)
    link_images(dataset, out)
    write_jsonl(out / "evidence.jsonl", rows, checked=True)
    summary = {
        "config": asdict(config),
        "samples": len(dataset.samples),
        "rewritten": len(result.rewritten),
        "left_out": list(result.left_out),
        "without_image": sum(not sample.images for sample in dataset.samples),
        "threshold": result.threshold,
        "set_aside": [asdict(problem) for problem in dataset.problems],
        **treatment.summary(),
    }
    if treatment.remedy == "restore":
        summary["restored"] = list(result.restored)
        summary["untrusted"] = [asdict(problem) for problem in result.untrusted]
    write_json(out / "purify.json", summary)
