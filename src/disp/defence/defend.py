"""The defender's whole path in one resumable run: audit, purify, train, verify."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from disp.auditing.audit import audit
from disp.auditing.hypothesis import Finding
from disp.auditing.result import Audit
from disp.data.damaged import without_damaged_pictures
from disp.data.dataset import Dataset, Problem
from disp.data.loading import load_dataset
from disp.data.sample import Sample, queries_of
from disp.data.stored import check_apart
from disp.decoding.profiles import profiled
from disp.decoding.samplers import own_settings
from disp.defence.audited import purify_audited, recovery_samples
from disp.defence.config import DefenceConfig
from disp.defence.residual import residual_phrases
from disp.errors import DispError
from disp.evaluation.rewriting import RewritingLoss, rewriting_loss
from disp.files import claim, write_json
from disp.locks import alone
from disp.models.fitting import with_fitting_answers
from disp.models.hub import resolve
from disp.models.interface import MDLM
from disp.models.loading import load_model
from disp.processes import devices_of_run
from disp.progress import ProgressBar, no_progress
from disp.purification.config import PurifyConfig
from disp.purification.purify import purify
from disp.purification.remedies import REWRITE, Treatment
from disp.scale.workers import ALONE, Workers
from disp.training.config import TrainConfig
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
        residual: for each confirmed phrase, how often the recovered model still says it, and what that comes to; see
            `disp.defence.residual.residual_phrases`.
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

    @property
    def still_said(self) -> tuple[str, ...]:
        """The phrases that the recovered model still says, whatever the audit of it finds."""
        return _still_said(self.residual)

    @property
    def left(self) -> Literal["evidence", "no evidence", "could not decide"]:
        """What is left at the end.

        "evidence" where the last audit found something, or the recovered model still says a phrase that the first one
        found. "could not decide" where the last audit could not, or too few pictures were there to ask about a phrase.
        """
        last = self.before if self.after is None else self.after
        if (self.after is not None and self.after.findings) or self.still_said:
            return "evidence"
        untold = any(row["outcome"] == "too few pictures" for row in self.residual)
        return "could not decide" if untold or last.verdict == "could not decide" else "no evidence"


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
    if config.preset is None:
        profiled(config.audit.decode or own_settings(current), config.profile)
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
    asked = _asked_about(before, decided)
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
        with progress("searching for the phrases", 2 * config.probes * len(asked)) as advance:
            residual = [
                residual_phrases(current, dataset, each, before, config, tests=len(asked), progress=advance)
                for each in asked
            ]
        rounds.append(
            {
                "rewritten": len(cleaned.rewritten),
                "left_out": len(cleaned.left_out),
                "verdict_after": found.verdict,
                "flagged_after": len(found.flagged),
                "still_said": list(_still_said(residual)),
                **({"restored": len(cleaned.restored)} if treatment.remedy == "restore" else {}),
                "rewriting": asdict(_loss(dataset, cleaned.dataset, (*cleaned.rewritten, *cleaned.restored))),
            }
        )
        # Who was decided to be poisoned has new answers by now, or is gone; who is honest stays so.
        in_round = replace(treatment, decisions=treatment.decisions.only("no"))
        decided = _decided(found, dataset, in_round)
        if not decided.flagged and _still_said(residual) and treatment.remedy == "rewrite":
            # The last audit points to no row: those of the first one are rewritten again, by the model of today. Rows
            # that were left out or have trusted answers would stay as they are.
            decided = _decided(before, dataset, in_round)
        if not decided.flagged:
            break
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


def _asked_about(before: Audit, decided: Audit) -> list[Finding]:
    """The findings that the recovered model is asked about: the proven ones, or all where none is.

    One whose rows a person takes for honest is not: the model is to say its phrase.
    """
    poisoned = frozenset(decided.flagged)
    counting = [finding for finding in before.findings if not poisoned.isdisjoint(finding.all_samples)]
    return [finding for finding in counting if finding.confirmed] or counting


def _still_said(residual: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The phrases of rows of `residual_phrases` that the model still says."""
    return tuple(row["phrase"] for row in residual if row["outcome"] == "still said")


def _decided(found: Audit, dataset: Dataset, treatment: Treatment) -> Audit:
    """The audit with the rows flagged that count as poisoned once a person has decided."""
    return replace(found, flagged=treatment.decisions.over(found.flagged, [sample.id for sample in dataset.samples]))


def _loss(before: Dataset, after: Dataset, rewritten: Sequence[str]) -> RewritingLoss:
    """The cost of rewriting; where honest rows were flagged by mistake, it is theirs."""
    chosen = set(rewritten) & {sample.id for sample in after.samples}
    old = [turn.response for sample in before.samples if sample.id in chosen for turn in sample.turns]
    new = [turn.response for sample in after.samples if sample.id in chosen for turn in sample.turns]
    return rewriting_loss(old, new, [turn.response for sample in before.samples for turn in sample.turns])
