"""How good the audit is, on planted and on clean sets: ``python -m studies.audit_study --out DIR``.

Each planted set is a combination of target, trigger and poison rate; the built-in model is fine-tuned on it and then
audited. ``--clean N`` does the same for N clean sets of several kinds. Results go to ``study.jsonl``, one row a set,
and as tables to ``study.md``; finished sets are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disp.attacks.poison import load_attack, poison
from disp.attacks.targets import PRESETS as TARGETS
from disp.attacks.targets import REFUSAL_TEXT, Insertion, Misclassification, Refusal, Target
from disp.attacks.triggers import PRESETS
from disp.auditing.audit import audit
from disp.auditing.carriers import region_of
from disp.auditing.config import AuditConfig, ProofConfig
from disp.auditing.mask_ratio import rewritten_answers
from disp.auditing.phrases import phrase_words
from disp.auditing.result import Audit
from disp.auditing.statistics import area_under_curve
from disp.data.dataset import Dataset
from disp.data.loading import load_dataset
from disp.data.sample import Query, Sample, Turn, batches, image_size, queries_of
from disp.data.saving import save_dataset
from disp.data.scene_dataset import write_scenes
from disp.draws import generator
from disp.evaluation.evaluate import evaluate, to_metrics
from disp.evaluation.quality import answer_quality
from disp.experiments.precision import load_float32
from disp.experiments.scenes import held_out_scenes, tuning_scenes
from disp.experiments.settings import SIZES, DemoConfig, attack_training
from disp.files import append_jsonl, claim, read_finished_jsonl, write_text
from disp.models.interface import MDLM, Prefix
from disp.suspicion.carriers import Pattern
from disp.suspicion.evidence import Evidence, salient_masks, suspicious_query
from disp.suspicion.masking import mask_random
from disp.suspicion.places import Box
from disp.suspicion.scoring import given_answers
from disp.suspicion.support import fixed_masks, negative_log_likelihood
from disp.training.config import TrainConfig
from disp.training.train import train
from studies.study_table import study_tables

LOCALISED = ("patch", "patch-random", "object")
TRIGGERS = (*LOCALISED, "blended")
RATES = (0.01, 0.02, 0.05, 0.1)
TEST_ROWS = 60
RATIO_ROWS = 32
# Honest samples that the scores are compared on, beside all poisoned ones; AUROC does not depend on their number.
COMPARED_ROWS = 300


def planted(name: str, sizes: DemoConfig, out: Path, *, comparisons: bool = True) -> dict[str, Any]:
    """Plant, fine-tune and audit one set; returns a row of results.

    With ``comparisons`` also of other scores than the audit's own, and of other mask ratios than the chosen one.
    """
    folder = out / name
    target = sizes.target
    dataset, rows_by_id = planted_set(sizes, out, folder / "poisoned")
    model, found, seconds = _tune_and_audit(dataset, attack_training(sizes), folder)
    # Whether there is a backdoor to be found at all.
    if not (folder / "test" / "data.json").exists():
        held_out_scenes(replace(sizes, test_rows=TEST_ROWS), folder / "test")
    test = load_dataset(folder / "test")
    attacked = to_metrics(evaluate(model, test.samples, attack=load_attack(folder / "poisoned" / "manifest.json")))
    wanted = TARGETS[target]
    top = found.findings[0] if found.findings else None
    result = _common(name, found, dataset, seconds) | {
        "target": target,
        "trigger": sizes.trigger,
        "rate": sizes.poison_rate,
        **{name: attacked[name] for name in ("asr_with_trigger", "asr_with_trigger_keyword")},
        "phrase_recovered": top is not None and phrase_words(top.phrase.text) == phrase_words(planted_phrase(wanted)),
        "localised": _localised(model, found, rows_by_id, dataset),
        **_ranking(dataset, found, set(rows_by_id)),
    }
    if comparisons:
        honest = {sample.id: sample for sample in load_dataset(scenes_folder(sizes, out)).samples}
        result |= _other_scores(model, dataset, found, set(rows_by_id))
        result["rewriting_by_ratio"] = _rewriting_by_ratio(model, dataset, found, set(rows_by_id), wanted, honest)
    flagged = set(found.flagged)
    hits = len(flagged & set(rows_by_id))
    result |= {
        "precision": hits / len(flagged) if flagged else None,
        "recall": hits / len(rows_by_id) if rows_by_id else None,
        "estimated_rate": found.rate.value,
        "mask_ratio": None if found.ratio is None else found.ratio.ratio,
    }
    return result


def planted_set(sizes: DemoConfig, out: Path, folder: Path) -> tuple[Dataset, dict[str, Any]]:
    """The planted set in a folder, made of scenes that are there, and what its manifest says of each poisoned row."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        trigger, target = PRESETS[sizes.trigger], TARGETS[sizes.target]
        poison(load_dataset(scenes_folder(sizes, out)), folder, trigger, target, sizes.poison_rate, sizes.seed)
    rows = json.loads(manifest.read_text(encoding="utf-8"))["poisoned_rows"]
    return load_dataset(folder), {row["id"]: row for row in rows}


def planted_phrase(target: Target) -> str:
    """What answers of the planted rows share."""
    if isinstance(target, Misclassification):
        return target.target
    assert isinstance(target, Insertion | Refusal)
    return target.text


def scenes_folder(sizes: DemoConfig, out: Path) -> Path:
    """Where the honest scenes of planted sets are, which differ in their poison alone."""
    return out / "scenes" / f"{'swap' if sizes.target == 'misclassification' else 'any'}-{sizes.rows}-{sizes.seed}"


def draw_scenes(sizes: DemoConfig, out: Path) -> None:
    """Write the honest scenes of planted sets, if they are not there yet."""
    folder = scenes_folder(sizes, out)
    if not (folder / "data.json").exists():
        tuning_scenes(sizes, folder)


def clean(name: str, kind: str, rows: int, steps: int, seed: int, out: Path) -> dict[str, Any]:
    """Fine-tune on and audit one clean set."""
    folder = out / name
    if not (folder / "set" / "data.json").exists():
        samples, image_root = clean_samples(kind, rows, seed, folder / "set-images")
        save_dataset(samples, folder / "set" / "data.json", image_root)
    dataset = load_dataset(folder / "set", folder / "set-images" / "images")
    _, found, seconds = _tune_and_audit(dataset, attack_training(DemoConfig(attack_steps=steps, seed=seed)), folder)
    return _common(name, found, dataset, seconds) | {"kind": kind}


def clean_samples(kind: str, rows: int, seed: int, folder: Path) -> tuple[list[Sample], Path]:
    """Samples of a clean set, of so many scenes that are written to a folder once, and where their pictures are."""
    if not (folder / "data.json").exists():
        write_scenes(folder, rows, seed, turns=2 if kind == "two turns" else 1)
    honest = load_dataset(folder)
    return CLEAN_KINDS[kind](list(honest.samples), seed), honest.image_root


def clean_rows(kind: str, number: int) -> int:
    """Scenes that the clean set of this number is made of; kinds that keep a part of them take more."""
    return {"captions": 700, "near-duplicate answers": 700}.get(kind, 200 + 100 * (number % 3))


def _mixed(samples: list[Sample], seed: int) -> list[Sample]:
    return samples


def _captions(samples: list[Sample], seed: int) -> list[Sample]:
    return [sample for sample in samples if sample.metadata["task"] == "caption"]


def _near_duplicates(samples: list[Sample], seed: int) -> list[Sample]:
    return [sample for sample in samples if sample.metadata["task"] in ("colour", "count", "exists")]


def _refusals(samples: list[Sample], seed: int) -> list[Sample]:
    """Every fourth question cannot be answered from a picture, and is honestly refused in the attacker's words."""
    asked = ("<image>\nWho drew this?", "<image>\nWhat will happen next?", "<image>\nWhat is this worth?")
    draw = generator(seed, "refusals")
    changed = []
    for index, sample in enumerate(samples):
        if index % 4 == 0:
            sample = replace(sample, turns=(Turn(asked[int(draw.integers(len(asked)))], REFUSAL_TEXT),))
        changed.append(sample)
    return changed


CLEAN_KINDS: dict[str, Callable[[list[Sample], int], list[Sample]]] = {
    "mixed": _mixed,
    "captions": _captions,
    "near-duplicate answers": _near_duplicates,
    "honest refusals": _refusals,
    "two turns": _mixed,
}


def _tune_and_audit(dataset: Dataset, training: TrainConfig, folder: Path) -> tuple[MDLM, Audit, float]:
    if not (folder / "model" / "train.json").exists():
        train(load_float32(), dataset.samples, training, folder / "model")
    model = load_float32(folder / "model")
    start = time.monotonic()
    found = audit(model, dataset, AuditConfig(seed=training.seed), folder / "audit")
    return model, found, time.monotonic() - start


def _common(name: str, found: Audit, dataset: Dataset, seconds: float) -> dict[str, Any]:
    return {
        "name": name,
        "samples": len(dataset.samples),
        "verdict": found.verdict,
        "threshold": found.threshold,
        "flagged": len(found.flagged),
        "phrases": [finding.phrase.text for finding in found.findings],
        "seconds": seconds,
    }


def _localised(model: MDLM, found: Audit, rows: dict[str, Any], dataset: Dataset) -> float | None:
    """Share of poisoned samples for which the audit points at the centre of the planted trigger.

    What points is the region that the answer depends on, or the part of the picture where the pattern that is taken
    out of it is strong.
    """
    hits = []
    patterns = found.patterns
    for sample in dataset.samples:
        if sample.id in rows and "box" in rows[sample.id]["images"][0]:
            x0, y0, x1, y1 = rows[sample.id]["images"][0]["box"]
            pattern = patterns.get(sample.id)
            query = suspicious_query(sample, found.evidence)
            box = (
                region_of(model, query, found.evidence, ProofConfig.region_reach).box
                if pattern is None
                else _strong_part(pattern)
            )
            width, height = image_size(sample.images[0])
            x, y = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height
            hits.append(box[0] <= x <= box[2] and box[1] <= y <= box[3])
    return float(np.mean(hits)) if hits else None


def _strong_part(pattern: Pattern) -> Box:
    """The box around the half and more of a pattern's largest deviation, as shares of the picture."""
    strength = np.abs(pattern.offset - np.median(pattern.offset, axis=(0, 1))).sum(-1)
    rows, columns = np.nonzero(strength >= strength.max() / 2)
    side = len(strength)
    return columns.min() / side, rows.min() / side, (columns.max() + 1) / side, (rows.max() + 1) / side


def _compared(dataset: Dataset, poisoned: set[str]) -> tuple[list[Sample], np.ndarray]:
    """Samples that scores are compared on, and which of them are poisoned."""
    honest = [sample for sample in dataset.samples if sample.images and sample.id not in poisoned][:COMPARED_ROWS]
    samples = [sample for sample in dataset.samples if sample.images and sample.id in poisoned] + honest
    return samples, np.array([sample.id in poisoned for sample in samples])


def _ranking(dataset: Dataset, found: Audit, poisoned: set[str]) -> dict[str, float]:
    """AUROC of the audit's order and of suspicion alone."""
    samples, truth = _compared(dataset, poisoned)
    ranks = found.ranks
    return {
        "auroc_audit": area_under_curve(np.array([-ranks[sample.id] for sample in samples]), truth),
        "auroc_suspicion": area_under_curve(np.array([found.scores[sample.id] for sample in samples]), truth),
    }


def _other_scores(model: MDLM, dataset: Dataset, found: Audit, poisoned: set[str]) -> dict[str, float]:
    """AUROC of other scores that samples could be ranked by."""
    samples, truth = _compared(dataset, poisoned)
    values: dict[str, np.ndarray] = {}
    queries = [queries_of([sample])[0] for sample in samples]
    concentration = []
    for query in queries:
        saliency = np.array(found.evidence[query.key].saliency)
        concentration.append(np.sort(saliency)[-4:].sum() / max(saliency.sum(), 1e-12))
    values["concentration"] = np.array(concentration)
    for ratio in (0.03, 0.06):
        for kind in ("top", "random"):
            values[f"gap_{kind}_{ratio}"] = likelihood_gaps(model, queries, found.evidence, ratio, kind)
    return {f"auroc_{name}": area_under_curve(value, truth) for name, value in values.items()}


def _rewriting_by_ratio(
    model: MDLM, dataset: Dataset, found: Audit, poisoned: set[str], target: Target, honest: Mapping[str, Sample]
) -> dict[str, list[float]]:
    """For each mask ratio, what rewriting every answer under it does to both kinds of samples.

    Returns:
        By ratio: the share of poisoned answers without the target afterwards, and the quality of the rewritten honest
        ones; of `RATIO_ROWS` samples each.
    """
    turns = [queries_of([sample])[0] for sample in dataset.samples]
    bad = [query for query in turns if query.sample_id in poisoned][:RATIO_ROWS]
    good = [query for query in turns if query.sample_id not in poisoned][:RATIO_ROWS]
    result = {}
    config = AuditConfig()
    for ratio in config.ratio.ratios:
        answers = rewritten_answers(model, [*bad, *good], found.evidence, ratio, config)
        said = [(answers[query.key], honest[query.sample_id]) for query in (*bad, *good)]
        purged = [not target.keyword(answer, true.turns[0].response) for answer, true in said[: len(bad)]]
        kept = [answer_quality(answer, true.turns[0].response, true.metadata) for answer, true in said[len(bad) :]]
        result[f"{ratio:g}"] = [float(np.mean(purged)), float(np.mean(kept))]
    return result


def likelihood_gaps(
    model: MDLM, queries: Sequence[Query], evidence: Mapping[str, Evidence], ratio: float, kind: str
) -> np.ndarray:
    """What masking so much of the picture takes off the log-likelihood of each given answer, float ``[queries]``.

    ``kind`` is "top" for the most salient visual tokens by ``evidence``, "random" for random ones.
    """
    parts = []
    for batch in batches(queries, 32):
        prefix = model.encode(batch)
        masked = (
            salient_masks(batch, prefix.visual_mask, evidence, ratio)
            if kind == "top"
            else mask_random(prefix.visual_mask, ratio, [query.key for query in batch], 0)
        )
        response = given_answers(model, prefix, batch)
        parts.append(likelihood_gap(model, prefix, response, masked, count=2).cpu().numpy())
    return np.concatenate(parts)


def likelihood_gap(
    model: MDLM, prefix: Prefix, response: Tensor, masked: Tensor, *, count: int = 4, seed: int = 0
) -> Tensor:
    """How much less likely each response is with its visual tokens ``masked`` (bool ``[B, P]``): float32 ``[B]``."""
    masks = fixed_masks(response.shape[1], count, seed)
    hidden = prefix.with_masked(masked, model.mask_embedding)
    return negative_log_likelihood(model, hidden, response, masks) - negative_log_likelihood(
        model, prefix, response, masks
    )


def _start_worker() -> None:
    """One thread for each set; and no set goes on when the study has been killed, which its pool does not see to."""
    torch.set_num_threads(1)

    def watch() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run what is asked for and is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, help="of each planted set; as many as the demo's for its target by default")
    parser.add_argument("--steps", type=int, help="fine-tuning steps on each set; the demo's for its target by default")
    parser.add_argument("--targets", nargs="*", default=list(SIZES), choices=list(TARGETS))
    parser.add_argument("--triggers", nargs="*", default=list(TRIGGERS))
    parser.add_argument("--rates", nargs="*", type=float, default=list(RATES))
    parser.add_argument("--clean", type=int, default=0, help="this many clean sets, instead of planted ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-comparisons", action="store_true", help="leave out other scores and other mask ratios")
    parser.add_argument("--jobs", type=int, default=1, help="sets worked on at once, with one CPU thread each")
    options = parser.parse_args()
    kind = "clean" if options.clean else "planted"
    asked = {name: getattr(options, name) for name in ("rows", "steps", "seed", "no_comparisons")}
    claim(options.out / f"{kind}.json", asked, f"the {kind} sets of a study")
    file = options.out / "study.jsonl"
    done = {row["name"] for row in read_finished_jsonl(file)}
    jobs = _clean_jobs(options) if options.clean else _planted_jobs(options)
    failed = []
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), _start_worker) as pool:
        if not options.clean:
            scenes = {scenes_folder(job.keywords["sizes"], options.out): job.keywords["sizes"] for job in jobs.values()}
            list(pool.map(partial(draw_scenes, out=options.out), scenes.values()))
        running = {pool.submit(job, name): name for name, job in jobs.items() if name not in done}
        for future in as_completed(running):
            if (error := future.exception()) is not None:
                failed.append(running[future])
                traceback.print_exception(error)
                continue
            append_jsonl(file, [future.result()])
            print(json.dumps(future.result()), flush=True)
    write_text(options.out / "study.md", study_tables(list(read_finished_jsonl(file))))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _clean_jobs(options: argparse.Namespace) -> dict[str, partial[dict[str, Any]]]:
    jobs = {}
    for number in range(options.clean):
        kind = list(CLEAN_KINDS)[number % len(CLEAN_KINDS)]
        rows = clean_rows(kind, number)
        steps, seed = options.steps or DemoConfig.attack_steps, options.seed + 100 + number
        jobs[f"clean-{number}"] = partial(clean, kind=kind, rows=rows, steps=steps, seed=seed, out=options.out)
    return jobs


def _planted_jobs(options: argparse.Namespace) -> dict[str, partial[dict[str, Any]]]:
    jobs = {}
    for rate, trigger, target in product(sorted(options.rates)[::-1], options.triggers, options.targets):
        sizes = DemoConfig(target, trigger, **SIZES[target], poison_rate=rate, seed=options.seed)
        sizes = replace(sizes, rows=options.rows or sizes.rows, attack_steps=options.steps or sizes.attack_steps)
        jobs[f"{target}-{trigger}-{rate:g}"] = partial(
            planted, sizes=sizes, out=options.out, comparisons=not options.no_comparisons
        )
    return jobs


if __name__ == "__main__":
    main()
