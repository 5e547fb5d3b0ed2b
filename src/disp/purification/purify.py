"""Diffusion Self-Purification of a fine-tuning set: saliency, masking, regeneration (arXiv 2602.22246).

The backdoored model rewrites its own training answers while the visual tokens that matter most to them are masked.
Three modes: "all" rewrites every answer, as the paper does; "selective" only the answers that do not survive the
masking of a few salient tokens; "random" masks at random and exists to show that it does not help.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from disp.data.dataset import Dataset, Problem
from disp.data.index import Index
from disp.data.sample import Sample, queries_of
from disp.data.saving import data_path, link_images, save_dataset
from disp.data.stored import check_apart, identity
from disp.data.trusted import answers_from
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
from disp.purification.rewriting import rewrite_answers
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
    patterns, samples, index = patterns or {}, dataset.samples, Index(dataset.samples)
    treatment.check(samples)
    check_apart(dataset, out)
    if treatment.remedy != "rewrite" and rewrite is None and config.mode != "selective":
        raise DispError(
            f"mode {config.mode!r} takes every row for poisoned; --remedy {treatment.remedy} needs --mode selective"
        )
    config = replace(config, decode=config.decode or own_settings(model, profile="exact"))
    workers.wait_for(out / "run.json")
    chosen_by_caller = None if rewrite is None else sorted(rewrite)
    claim(
        out / "run.json",
        {
            "weights": fingerprint(model),
            "config": asdict(config),
            **identity(dataset, index),
            "rewrite": chosen_by_caller,
            "patterns": sorted(patterns),
            **treatment.identity(),
        },
        "a purification",
        ignore=("batch_size",),
    )
    if treatment.decisions.by_id and workers.leads:
        write_jsonl(out / "decisions.jsonl", (each.to_json() for each in treatment.decisions.by_id.values()))
    asked = [config.asked(sample) for sample in samples]
    if evidence is None:
        selective = config.mode == "selective"
        with progress("scoring", len(queries_of(asked))) as advance:
            evidence = score(
                model,
                asked,
                config.scoring,
                out / "scores.jsonl",
                counterfactual=selective,
                workers=workers,
                progress=advance,
            )
    # 1. Which samples count as poisoned.
    found, threshold = _suspicious(asked, evidence, config, rewrite)
    poisoned = treatment.decisions.over(found, index.by_id)
    # 2. Their new answers, by id: regenerated under masking, or trusted ones.
    new: Mapping[str, Sequence[str]] = {}
    masks: dict[str, tuple[int, ...]] = {}
    untrusted: tuple[Problem, ...] = ()
    if treatment.remedy == "rewrite":
        again = frozenset(poisoned)
        chosen = [sample for sample in asked if sample.id in again]
        with progress("rewriting", len(queries_of(chosen))) as advance:
            answers, masks = rewrite_answers(
                model, chosen, evidence, patterns, config, out / "responses.jsonl", workers=workers, progress=advance
            )
        new = {key: _answers_of(index.by_id[key], answers) for key in poisoned}
    elif treatment.trusted is not None:
        new, untrusted = answers_from(treatment.trusted, index, poisoned)
        if untrusted and treatment.strict:
            raise DispError(f"{untrusted[0].place}: {untrusted[0].reason}")
    purified = [sample.with_responses(new[sample.id]) if sample.id in new else sample for sample in samples]
    gone = frozenset(poisoned) - new.keys()
    if treatment.remedy == "rewrite":
        gone = frozenset(_still_poisoned(samples, purified, poisoned, treatment, leave_out))
    left_out = tuple(key for key in poisoned if key in gone)
    kept = [sample for sample in purified if sample.id not in gone]
    if not kept:
        raise DispError(f"{dataset.path}: every row was to be left out; nothing remains to train on")
    # 3. Write the set and the evidence.
    path = data_path(dataset, out)
    rewritten, restored = (tuple(new), ()) if treatment.remedy == "rewrite" else ((), tuple(new))
    if workers.leads:
        save_dataset(kept, path, dataset.image_root, like=dataset)
        link_images(dataset, out)
        done = Done(treatment, frozenset(poisoned), gone, masks, patterns)
        write_jsonl(out / "evidence.jsonl", evidence_rows(asked, purified, evidence, done), checked=True)
        summary = {
            "config": asdict(config),
            "samples": len(samples),
            "rewritten": len(rewritten),
            "left_out": list(left_out),
            "without_image": sum(not sample.images for sample in samples),
            "threshold": threshold,
            "set_aside": [asdict(problem) for problem in dataset.problems],
            **treatment.summary(),
        }
        if treatment.remedy == "restore":
            summary["restored"] = list(restored)
            summary["untrusted"] = [asdict(problem) for problem in untrusted]
        write_json(out / "purify.json", summary)
    result = replace(dataset, samples=tuple(kept), path=path)
    return Purified(
        dataset=result,
        rewritten=rewritten,
        left_out=left_out,
        threshold=threshold,
        evidence=evidence,
        restored=restored,
        untrusted=untrusted,
    )


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


def _answers_of(sample: Sample, answers: Mapping[str, str]) -> list[str]:
    """The new answers of a sample, and the old ones of the turns that were not asked."""
    return [answers.get(key, turn.response) for key, turn in zip(sample.keys, sample.turns, strict=True)]


def _still_poisoned(
    samples: Sequence[Sample],
    purified: Sequence[Sample],
    poisoned: Collection[str],
    treatment: Treatment,
    leave_out: Callable[[Sample, Sample], bool] | None,
) -> Iterator[str]:
    """Ids of the rewritten samples that are left out all the same."""
    rewritten, certain = frozenset(poisoned), treatment.decisions.ids("yes")
    for before, after in zip(samples, purified, strict=True):
        if after.id not in rewritten:
            continue
        if (leave_out and leave_out(before, after)) or (after.id in certain and after.turns == before.turns):
            yield after.id
