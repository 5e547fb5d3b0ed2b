"""One defence against one attack: rewriting, recovery, measurement, in a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from disp.data.sample import Query, Sample, queries_of
from disp.decoding.generate import answered
from disp.decoding.samplers import own_settings
from disp.defence.audited import purify_audited, ratio_for_all, recovery_samples
from disp.evaluation.intervals import wilson
from disp.experiments.attacked import AttackRun, digest
from disp.experiments.phases import Phases
from disp.experiments.recipe import Defence
from disp.experiments.settings import auditing
from disp.experiments.subject import saliency_of
from disp.files import read_json, sha256, write_json
from disp.machine import stamp
from disp.models.fitting import with_fitting_answers
from disp.models.interface import MDLM, Prefix
from disp.purification.config import PurifyConfig
from disp.purification.names import Rewrite
from disp.purification.purify import Purified, purify
from disp.suspicion.evidence import Evidence
from disp.suspicion.masking import hide, mask_random, mask_top
from disp.suspicion.saliency import saliency

# What a defence did with which rows, in its folder.
REWRITTEN = "rewritten.json"


def defence_folder(run: AttackRun, name: str, defence: Defence) -> Path:
    """The folder of a defence, below its attack's, named by what it depends on."""
    settings = {**asdict(defence), "title": "", "recovery": asdict(run.settings.recovery)}
    return run.folder / "defences" / f"{name}-{digest(settings)}"


def run_defence(run: AttackRun, name: str, defence: Defence) -> None:
    """Measure the models before a defence and after it; writes ``cell.json``, and does nothing where it is there.

    Args:
        run: the attack.
        name: what the defence is called.
        defence: what it does.
    """
    folder = defence_folder(run, name, defence)
    if (folder / "cell.json").exists():
        return
    run.before()
    phases = Phases(folder)
    if not defence.fine_tunes:
        config = purify_config(run, defence)
        encode = partial(self_masked, config=config, defence=defence)
        answer = partial(answered, config=config.decode, encode=encode, seed=config.seed)
        found = run.measured("after", run.model, folder, phases, answer)
        done: dict[str, Any] = {"mask_ratio": config.mask_ratio, "rewritten": None}
    else:
        # Where nothing was suspicious, there is nothing to recover from: the model stays as it is.
        model = run.model() if _finds_nothing(run, defence, folder) else recovered(run, name, defence, folder)
        found, done = run.measured("after", lambda: model, folder, phases), read_json(folder / REWRITTEN)
    write_json(
        folder / "cell.json",
        {
            "metrics": found["metrics"],
            "weights": found["weights"],
            "mask_ratio": done["mask_ratio"],
            "rewriting": _precision(run, done["rewritten"]),
            "data_sha256": done.get("data_sha256"),
            "rows_left_out": done.get("rows_left_out", 0),
            "made": stamp(),
        },
    )


def _finds_nothing(run: AttackRun, defence: Defence, folder: Path) -> bool:
    """Whether a defence rewrites no row, which it writes down where it is so."""
    record = folder / REWRITTEN
    if not record.exists() and defence.rewrite == "flagged" and not run.audit.flagged:
        write_json(record, {"rewritten": [], "mask_ratio": None})
    return record.exists() and read_json(record)["rewritten"] == []


def recovered(
    run: AttackRun, name: str, defence: Defence, folder: Path, purified: Path | None = None, model: Path | None = None
) -> MDLM:
    """The model after a defence; what was done with which rows goes to the folder's `REWRITTEN`.

    Args:
        run: the attack.
        name: what the defence is called.
        defence: what it does; it fine-tunes.
        folder: of the record, and of the clock.
        purified: folder of the purified set; below ``folder`` if not given.
        model: folder of the model; below ``folder`` if not given.
    """
    phases = Phases(folder)

    def samples() -> Sequence[Sample]:
        rows, done = _rewritten(run, name, defence, purified or folder / "purified", phases)
        fitting = with_fitting_answers(replace(run.poisoned, samples=tuple(rows)), run.model(), strict=False)
        gone = {sample.id for sample in run.poisoned.samples} - {sample.id for sample in fitting.samples}
        write_json(folder / REWRITTEN, {**done, "rows_left_out": len(gone)})
        return fitting.samples

    start = run.backdoored if defence.start == "compromised" else run.subject.name
    run.model()  # the backdoored one, which everything starts from, is there from here on
    return run.fine_tuned(name, start, samples, run.settings.recovery, model or folder / "model", phases)


def _rewritten(
    run: AttackRun, name: str, defence: Defence, out: Path, phases: Phases
) -> tuple[Sequence[Sample], dict[str, Any]]:
    """The rows that the model is fine-tuned on after a defence, and what was done with which."""
    if defence.rewrite == "nothing":
        return run.poisoned.samples, {"rewritten": None, "mask_ratio": None}
    model, bars = run.model(), run.bars(name)
    if defence.rewrite == "flagged" or defence.leave_out:
        looking, found = auditing(run.settings.purify), run.audit
        which: Rewrite = "all" if defence.leave_out else "flagged"
        count = len(queries_of(run.poisoned.samples)) if defence.leave_out else len(found.flagged)
        with phases.phase("rewrite", count), run.subject.fast():
            cleaned = purify_audited(model, run.poisoned, found, looking, out, rewrite=which, progress=bars)
            rows = recovery_samples(cleaned, found, looking.seed)
        return rows, _done(cleaned, ratio_for_all(found, looking) if defence.leave_out else None)
    config = purify_config(run, defence)
    evidence = ranked_by(defence, run.evidence(config))
    with phases.phase("rewrite", len(queries_of(run.poisoned.samples))), run.subject.fast():
        cleaned = purify(model, run.poisoned, config, out, evidence=evidence, progress=bars)
    return cleaned.dataset.samples, _done(cleaned, config.mask_ratio)


def _done(cleaned: Purified, ratio: float | None) -> dict[str, Any]:
    return {
        "rewritten": [*cleaned.rewritten, *(key for key in cleaned.left_out if key not in cleaned.rewritten)],
        "mask_ratio": ratio,
        "data_sha256": sha256(cleaned.dataset.path),
    }


def ranked_by(defence: Defence, evidence: Mapping[str, Evidence]) -> Mapping[str, Evidence]:
    """The evidence in a defence's order of tokens; the least salient ones come first where it masks these."""
    if defence.ranking != "least":
        return evidence
    return {key: replace(each, saliency=[-value for value in each.saliency]) for key, each in evidence.items()}


def purify_config(run: AttackRun, defence: Defence) -> PurifyConfig:
    """How a defence rewrites all answers, or answers itself."""
    model, own = run.model(), run.settings.purify
    if defence.preset == "published":
        config = PurifyConfig.published(model, seed=own.seed, batch_size=own.batch_size)
        if defence.question == "own":
            config = replace(config, question=None)
    else:
        config = replace(own, mode="all", decode=own.decode or own_settings(model, profile="exact"))
    estimator = saliency_of(config.scoring.saliency, defence.saliency)
    scoring = config.scoring
    if estimator != scoring.saliency:
        block = scoring.block_length or model.generation_defaults.get("block_length")
        scoring = replace(scoring, saliency=estimator, block_length=block)
    ratio = run.chosen_ratio() if defence.mask_ratio == "audit" else defence.mask_ratio
    return replace(
        config,
        mode="random" if defence.rewrite == "random" else "all",
        mask_ratio=config.mask_ratio if ratio is None else float(ratio),
        scoring=scoring,
        substitute=defence.substitute,
    )


def self_masked(model: MDLM, batch: Sequence[Query], *, config: PurifyConfig, defence: Defence) -> Prefix:
    """The prefix of new questions, each under the mask that its own saliency gives."""
    keys = [query.key for query in batch]
    prefix = model.encode(batch)
    scoring = config.scoring
    scores = saliency(model, prefix, keys, scoring.saliency, scoring.gen_length, block_length=scoring.block_length)
    return hidden_by(model, prefix, keys, -scores if defence.ranking == "least" else scores, config)


def hidden_by(model: MDLM, prefix: Prefix, keys: Sequence[str], scores: Any, config: PurifyConfig) -> Prefix:
    """The prefix with the highest-scoring tokens, or random ones, hidden as a config says; scores ``[B, P]``."""
    scored = prefix.scored(config.scoring.saliency.separators)
    if config.mode == "random":
        masked = mask_random(scored, config.mask_ratio, keys, config.seed, rounding=config.rounding)
    else:
        masked = mask_top(scores, scored, config.mask_ratio, rounding=config.rounding)
    return hide(prefix, masked, model.mask_embedding, config.substitute)


def _precision(run: AttackRun, rewritten: Sequence[str] | None) -> dict[str, Any] | None:
    """How many of the rewritten rows are poisoned, and how many of the poisoned rows were rewritten, with intervals."""
    if rewritten is None:
        return None
    hits = len(run.poisoned_ids & set(rewritten))
    shares: Mapping[str, int] = {"precision": len(rewritten), "recall": len(run.poisoned_ids)}
    return {
        "rows": len(rewritten),
        **{name: asdict(wilson(hits, count)) if count else None for name, count in shares.items()},
    }
