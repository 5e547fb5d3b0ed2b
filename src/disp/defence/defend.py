"""The defender's whole path in one resumable run: audit, purify, train, verify."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from disp.auditing.audit import audit
from disp.auditing.hypothesis import Finding
from disp.auditing.result import Audit
from disp.data.damaged import without_damaged_pictures
from disp.data.dataset import Dataset, Problem
from disp.data.loading import load_dataset
from disp.data.stored import check_apart
from disp.decoding.profiles import profiled
from disp.decoding.samplers import own_settings
from disp.defence.config import DefenceConfig
from disp.defence.rounds import Round, Run, fine_tuned, looked_at, purified, round_of, still_said
from disp.errors import DispError
from disp.files import write_json
from disp.locks import alone
from disp.models.fitting import with_fitting_answers
from disp.models.hub import resolve
from disp.models.interface import MDLM
from disp.models.loading import load_model
from disp.progress import ProgressBar, no_progress
from disp.purification.remedies import REWRITE, Treatment
from disp.scale.workers import ALONE, Workers
from disp.training.train import check_training


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
        return still_said(self.residual)

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
    run = Run(
        dataset=dataset,
        config=config,
        out=out,
        start=start or model,
        load=load,
        workers=workers,
        progress=progress,
    )
    current = _checked(run, model, start, treatment)
    with progress("checking pictures", len(dataset.samples)) as advance:
        dataset = without_damaged_pictures(dataset, strict=strict, progress=advance)
    run = replace(run, dataset=dataset)
    if strict:
        with_fitting_answers(dataset, current, strict=True)
    before = audit(
        current, dataset, config.audit, out / "audit", truth=truth, name=str(model), workers=workers, progress=progress
    )
    decided = _decided(before, dataset, treatment)
    if not decided.flagged and not config.rewrites_all:
        if workers.leads:
            write_json(out / "defence.json", {"verdict": before.verdict, "rounds": 0, **treatment.summary()})
        return Defence(
            dataset=dataset, before=before, after=None, model=None, data=None, left_out=(), untrained=(), residual=()
        )
    asked, data, in_round = _asked_about(before, decided), dataset, treatment
    rounds: list[Round] = []
    for number in range(1, config.rounds + 1):
        # 1. Rewrite what is flagged, keep what is supported; or every row.
        cleaned, samples = purified(run, number, current, data, decided, in_round)
        fitting = with_fitting_answers(replace(cleaned.dataset, samples=tuple(samples)), current, strict=strict)
        del current  # one model in memory at a time is enough
        # 2. Fine-tune on it.
        recovered = fine_tuned(run, number, fitting.samples)
        # 3. Look again, at the data that could plant the backdoor, with the model that should have lost it.
        current, data = load(recovered), load_dataset(cleaned.dataset.path, dataset.image_root)
        after, residual = looked_at(run, number, current, recovered, before, asked)
        untrained = fitting.problems[len(cleaned.dataset.problems) :]
        rounds.append(round_of(run, number, cleaned, untrained, recovered, after, residual, treatment))
        # Who was decided to be poisoned has new answers by now, or is gone; who is honest stays so.
        in_round = replace(treatment, decisions=treatment.decisions.only("no"))
        decided = _decided(after, dataset, in_round)
        if not decided.flagged and rounds[-1].still_said and treatment.remedy == "rewrite":
            # The last audit points to no row: those of the first one are rewritten again, by the model of today. Rows
            # that were left out or have trusted answers would stay as they are.
            decided = _decided(before, dataset, in_round)
        if not decided.flagged:
            break
    if workers.leads:
        _write(before, rounds, treatment, out)
    return _defence(run, before, after, rounds, data)


def _defence(run: Run, before: Audit, after: Audit, rounds: Sequence[Round], data: Dataset) -> Defence:
    """What all rounds come to; ``after`` and ``data`` are of the last one."""
    last = rounds[-1]
    return Defence(
        dataset=run.dataset,
        before=before,
        after=after,
        verified=last.verified,
        model=last.model,
        data=data.path,
        left_out=tuple(key for each in rounds for key in each.left_out),
        untrained=last.untrained,
        residual=last.residual,
        restored=tuple(key for each in rounds for key in each.restored),
        untrusted=tuple(problem for each in rounds for problem in each.untrusted),
    )


def _checked(run: Run, model: str | Path, start: str | Path | None, treatment: Treatment) -> MDLM:
    """The model under audit. What the training or the treatment lacks is said before the audit, not after it."""
    config = run.config
    for number in range(1, config.rounds + 1):
        check_apart(run.dataset, run.purified_folder(number))
    treatment.check(run.dataset.samples)
    if config.rewrites_all and treatment.remedy != "rewrite":
        said = "--rewrite all" if config.preset is None else "the published preset"
        raise DispError(f"{said} rewrites every row, which --remedy {treatment.remedy} does not")
    if start is not None:
        resolve(start)
        check_training(run.load(start), config.training)
    current = run.load(model)
    if start is None:
        check_training(current, config.training)
    if config.preset is None:
        profiled(config.audit.decode or own_settings(current), config.profile)
    return current


def _write(before: Audit, rounds: Sequence[Round], treatment: Treatment, out: Path) -> None:
    """``defence.json``, and ``audit/verify.json``: the report on the given model tells what became of it."""
    last = rounds[-1]
    told = json.loads((last.verified / "audit.json").read_text(encoding="utf-8"))
    write_json(out / "audit" / "verify.json", {**told, "residual": last.residual})
    summary = {
        "verdict": before.verdict,
        "rounds": len(rounds),
        "by_round": [each.told for each in rounds],
        "residual": last.residual,
        **treatment.summary(),
    }
    write_json(out / "defence.json", summary)


def _asked_about(before: Audit, decided: Audit) -> list[Finding]:
    """The findings that the recovered model is asked about: the proven ones, or all where none is.

    One whose rows a person takes for honest is not: the model is to say its phrase.
    """
    poisoned = frozenset(decided.flagged)
    counting = [finding for finding in before.findings if not poisoned.isdisjoint(finding.all_samples)]
    return [finding for finding in counting if finding.confirmed] or counting


def _decided(found: Audit, dataset: Dataset, treatment: Treatment) -> Audit:
    """The audit with the rows flagged that count as poisoned once a person has decided."""
    return replace(found, flagged=treatment.decisions.over(found.flagged, [sample.id for sample in dataset.samples]))
