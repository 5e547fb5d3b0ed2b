"""The defender's whole path in one resumable run: audit, purify, train, verify."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from disp.auditing.audit import audit
from disp.auditing.hypothesis import Finding
from disp.auditing.planting import answers_about_changed
from disp.auditing.result import Audit
from disp.data.damaged import without_damaged_pictures
from disp.data.dataset import Dataset, Problem
from disp.data.loading import load_dataset
from disp.data.sample import ImageSource, Sample, queries_of
from disp.data.stored import check_apart
from disp.defence.audited import purify_audited, recovery_samples
from disp.defence.config import DefenceConfig
from disp.draws import generator
from disp.errors import DispError
from disp.evaluation.rewriting import RewritingLoss, rewriting_loss
from disp.files import claim, write_json
from disp.locks import alone
from disp.models.fitting import with_fitting_answers
from disp.models.hub import resolve
from disp.models.interface import MDLM
from disp.models.loading import load_model
from disp.progress import ProgressBar, no_progress
from disp.purification.config import PurifyConfig
from disp.purification.purify import purify
from disp.purification.remedies import REWRITE, Treatment
from disp.scale.workers import ALONE, Workers
from disp.training.config import TrainConfig, devices_of_run
from disp.training.train import check_training, train


@dataclass(frozen=True)
class Defence:
    """What a defence did.

    Attributes:
        dataset: the given set without rows whose pictures cannot be read, which are among its ``problems``.
        before: the audit of the given model.
        after: the audit of the recovered model on the same data; None where nothing was done, as nothing was found.
        model: folder of the recovered model, or of its adapter where the training saves that alone, or None.
        data: the purified set, or None.
        left_out: ids of samples that are not in it: they say a phrase that was found whatever is masked, there are no
            trusted answers for them, or they were to be left out.
        untrained: rows of the purified set that the model was not fine-tuned on, as an answer is too long for it.
        residual: for each confirmed phrase, how often the recovered model still says it; see `residual_phrases`.
        restored: ids of samples that have trusted answers in the purified set.
        untrusted: flagged samples that there are no trusted answers for, and why.
        verified: folder of the audit of the recovered model, or None.
    """

    dataset: Dataset
    before: Audit
    after: Audit | None
    model: Path | None
    data: Path | None
    left_out: tuple[str, ...]
    untrained: tuple[Problem, ...]
    residual: tuple[dict[str, Any], ...]
    restored: tuple[str, ...] = ()
    untrusted: tuple[Problem, ...] = ()
    verified: Path | None = None


@alone
def defend(
    model: str | Path,
    dataset: Dataset,
    config: DefenceConfig,
    out: Path,
    *,
    start: str | Path | None = None,
    strict: bool = False,
    truth: Path | None = None,
    treatment: Treatment = REWRITE,
    load: Callable[[str | Path], MDLM] = load_model,
    workers: Workers = ALONE,
    progress: ProgressBar = no_progress,
) -> Defence:
    """Audit a model's fine-tuning set and, where there is evidence, purify the set, retrain the model and check it.

    ``out`` receives ``audit/`` (before), ``purified/`` and ``model/``, ``verify/`` (the audit of the recovered model on
    the given data, where a backdoor that is left would show) and ``defence.json``; further rounds are numbered.
    A killed run goes on where it stopped. ``audit/verify.json`` holds the last re-audit for the report.

    Args:
        model: the model under audit, as `load_model` takes it.
        dataset: the set that it was fine-tuned on.
        config: see `DefenceConfig`.
        out: folder of the run.
        start: the model that is fine-tuned on the purified set, such as the checkpoint before fine-tuning; the model
            under audit itself if None.
        strict: stop at the first row that cannot be read or trained on instead of setting it aside.
        truth: the manifest of a planted attack, to measure the audit; it decides nothing.
        treatment: what is done with the rows that count as poisoned, and what a person decided. A row decided to be
            poisoned is treated even where the audit finds nothing.
        load: loads a model, to choose its device and precision.
        workers: who scores, rewrites, and gives the answers that people are shown; see `disp.scale`. The first process
            trains while the others wait, and writes what is written. Not actors of Ray: they keep the first model.
        progress: opened with a description and a total for each long step; see `disp.progress`.

    Raises:
        DispError: nothing can be decided (see `audit`), the model cannot be fine-tuned as asked (see
            `check_training`), or ``out`` holds another run.
    """
    # What the training or the treatment lacks is said before the audit, not after it.
    for number in range(1, config.rounds + 1):
        check_apart(dataset, out / f"purified{_suffix(number)}")
    treatment.check(dataset.samples)
    if config.rewrites_all and treatment.remedy != "rewrite":
        said = "--rewrite all" if config.preset is None else "the published preset"
        raise DispError(f"{said} rewrites every row, which --remedy {treatment.remedy} does not")
    if start is not None:
        resolve(start)
        check_training(load(start), config.training)
    current = load(model)
    if start is None:
        check_training(current, config.training)
    with progress("checking pictures", len(dataset.samples)) as advance:
        dataset = without_damaged_pictures(dataset, strict=strict, progress=advance)
    if strict:
        with_fitting_answers(dataset, current, strict=True)
    before = audit(
        current, dataset, config.audit, out / "audit", truth=truth, name=str(model), workers=workers, progress=progress
    )
    decided, data = _decided(before, dataset, treatment), dataset
    if not decided.flagged and not config.rewrites_all:
        if workers.leads:
            write_json(out / "defence.json", {"verdict": before.verdict, "rounds": 0, **treatment.summary()})
        return Defence(
            dataset=dataset, before=before, after=None, model=None, data=None, left_out=(), untrained=(), residual=()
        )
    rounds: list[dict[str, Any]] = []
    left_out: tuple[str, ...] = ()
    untrained: tuple[Problem, ...] = ()
    restored: tuple[str, ...] = ()
    untrusted: tuple[Problem, ...] = ()
    in_round = treatment
    for number in range(1, config.rounds + 1):
        suffix = _suffix(number)
        # 1. Rewrite what is flagged, keep what is supported; or every row.
        purified = out / f"purified{suffix}"
        if config.preset is None:
            cleaned = purify_audited(
                current,
                data,
                decided,
                config.audit,
                purified,
                rewrite=config.rewrite,
                treatment=in_round,
                profile=config.profile,
                substitute=config.substitute,
                workers=workers,
                progress=progress,
            )
            samples = recovery_samples(cleaned, decided, config.audit.seed, most=config.under_patterns)
        else:
            settings = PurifyConfig.published(current, seed=config.audit.seed, batch_size=config.audit.batch_size)
            settings = settings.with_profile(current, config.profile, config.substitute)
            cleaned = purify(current, data, settings, purified, treatment=in_round, workers=workers, progress=progress)
            samples = list(cleaned.dataset.samples)
        left_out += cleaned.left_out
        restored += cleaned.restored
        untrusted += cleaned.untrusted
        # 2. Fine-tune on it. One model in memory at a time is enough.
        fitting = with_fitting_answers(replace(cleaned.dataset, samples=tuple(samples)), current, strict=strict)
        untrained = fitting.problems[len(cleaned.dataset.problems) :]
        del current
        folder = out / f"model{suffix}"
        recovery = {
            "start": str(start or model),
            "under_patterns": config.under_patterns,
            "training": asdict(config.training),
        }
        workers.wait_for(folder / "recovery.json")
        claim(folder / "recovery.json", recovery, "a recovered model")
        workers.first_does(
            folder / "train.json",
            partial(_train, partial(load, start or model), fitting.samples, config.training, folder, progress),
        )
        # 3. Look again, at the data that could plant the backdoor, with the model that should have lost it.
        recovered = folder / "adapter" if config.training.saves_adapter_alone else folder
        current, data = load(recovered), load_dataset(cleaned.dataset.path, dataset.image_root)
        again = replace(config.audit, learnt_only=True)
        verified = out / f"verify{suffix}"
        found = audit(current, dataset, again, verified, name=str(recovered), workers=workers, progress=progress)
        rounds.append(
            {
                "rewritten": len(cleaned.rewritten),
                "left_out": len(cleaned.left_out),
                "verdict_after": found.verdict,
                "flagged_after": len(found.flagged),
                **({"restored": len(cleaned.restored)} if treatment.remedy == "restore" else {}),
                "rewriting": asdict(_loss(dataset, cleaned.dataset, (*cleaned.rewritten, *cleaned.restored))),
            }
        )
        # Who was decided to be poisoned has new answers by now, or is gone; who is honest stays so.
        in_round = replace(treatment, decisions=treatment.decisions.only("no"))
        decided = _decided(found, dataset, in_round)
        if not decided.flagged:
            break
    confirmed = [finding for finding in before.findings if finding.confirmed] or list(before.findings)
    with progress("searching for the phrases", 2 * config.probes * len(confirmed)) as advance:
        residual = [
            residual_phrases(current, dataset, finding, before, config, progress=advance) for finding in confirmed
        ]
    summary = {
        "verdict": before.verdict,
        "rounds": len(rounds),
        "by_round": rounds,
        "residual": residual,
        **treatment.summary(),
    }
    if workers.leads:
        # The report on the given model tells what became of it.
        told = json.loads((verified / "audit.json").read_text(encoding="utf-8"))
        write_json(out / "audit" / "verify.json", {**told, "residual": residual})
        write_json(out / "defence.json", summary)
    return Defence(
        dataset=dataset,
        before=before,
        after=found,
        verified=verified,
        model=recovered,
        data=data.path,
        left_out=left_out,
        untrained=untrained,
        residual=tuple(residual),
        restored=restored,
        untrusted=untrusted,
    )


def _suffix(number: int) -> str:
    """What the names of a round's folders end with."""
    return "" if number == 1 else f"-{number}"


def _train(
    load: Callable[[], MDLM],
    samples: Sequence[Sample],
    config: TrainConfig,
    folder: Path,
    progress: ProgressBar,
    further: Callable[[], None],
) -> None:
    """Fine-tune a model, and call ``further`` after each step; see `Workers.first_does`."""
    training = config.for_turns(len(queries_of(samples)), devices_of_run())
    with progress("training", training.steps) as advance:

        def step(count: int) -> None:
            further()
            advance(count)

        train(load(), samples, training, folder, progress=step)


def _decided(found: Audit, dataset: Dataset, treatment: Treatment) -> Audit:
    """The audit with the rows flagged that count as poisoned once a person has decided."""
    return replace(found, flagged=treatment.decisions.over(found.flagged, [sample.id for sample in dataset.samples]))


def residual_phrases(
    model: MDLM,
    dataset: Dataset,
    finding: Finding,
    found: Audit,
    config: DefenceConfig,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """How often a model says a phrase on pictures of unflagged samples, as they are and with the trigger pasted in.

    Args:
        model: the recovered model.
        dataset: the given set.
        finding: the phrase and its trigger candidate.
        found: the audit that found it.
        config: see `DefenceConfig`.
        progress: called with the number of answers finished.

    Returns:
        ``{"phrase": str, "clean": [said, asked], "triggered": [said, asked]}``.
    """
    flagged = {*found.flagged, *(key for each in found.findings for key in each.samples)}
    free = [sample for sample in dataset.samples if sample.images and sample.id not in flagged]
    free = [sample for sample in free if not any(finding.phrase.said_in(turn.response) for turn in sample.turns)]
    order = generator(config.audit.seed, "residual", *finding.phrase.words).permutation(len(free))
    turns = (queries_of([free[index]]) for index in order[: config.probes])
    queries = [next(query for query in each if query.images) for each in turns]
    found_trigger = finding.trigger is not None or finding.pattern is not None
    counts = {}
    for kind, asked in (
        ("clean", [(query, _as_it_is) for query in queries]),
        ("triggered", [(query, finding.with_trigger) for query in queries] if found_trigger else []),
    ):
        answers = answers_about_changed(model, asked, config.audit, progress)
        counts[kind] = [int(np.sum([finding.phrase.said_in(text) for text in answers])), len(answers)]
    return {"phrase": finding.phrase.text, **counts}


def _as_it_is(image: ImageSource) -> ImageSource:
    return image


def _loss(before: Dataset, after: Dataset, rewritten: Sequence[str]) -> RewritingLoss:
    """The cost of rewriting; where honest rows were flagged by mistake, it is theirs."""
    chosen = set(rewritten) & {sample.id for sample in after.samples}
    old = [turn.response for sample in before.samples if sample.id in chosen for turn in sample.turns]
    new = [turn.response for sample in after.samples if sample.id in chosen for turn in sample.turns]
    return rewriting_loss(old, new, [turn.response for sample in before.samples for turn in sample.turns])
