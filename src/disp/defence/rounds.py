"""One round of a defence: rewrite, fine-tune, look again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from disp.auditing.audit import audit
from disp.auditing.hypothesis import Finding
from disp.auditing.result import Audit
from disp.data.dataset import Dataset, Problem
from disp.data.sample import Sample, queries_of
from disp.defence.audited import purify_audited, recovery_samples
from disp.defence.config import DefenceConfig
from disp.defence.residual import residual_phrases
from disp.evaluation.rewriting import RewritingLoss, rewriting_loss
from disp.files import claim
from disp.models.interface import MDLM
from disp.processes import devices_of_run
from disp.progress import ProgressBar
from disp.purification.config import PurifyConfig
from disp.purification.purify import Purified, purify
from disp.purification.remedies import Treatment
from disp.scale.workers import Workers
from disp.training.config import TrainConfig
from disp.training.train import train


@dataclass(frozen=True)
class Run:
    """What stays the same from round to round; see `disp.defence.defend.defend`.

    Attributes:
        dataset: without damaged pictures.
        config: how the model is defended.
        out: folder of the run.
        start: what is fine-tuned.
        load: loads a model.
        workers: who does it.
        progress: for each long step.
    """

    dataset: Dataset
    config: DefenceConfig
    out: Path
    start: str | Path
    load: Callable[[str | Path], MDLM]
    workers: Workers
    progress: ProgressBar

    def purified_folder(self, number: int) -> Path:
        """Of the purified set of a round, from 1."""
        return self.out / f"purified{_suffix(number)}"

    def model_folder(self, number: int) -> Path:
        """Of the fine-tuned model of a round."""
        return self.out / f"model{_suffix(number)}"

    def verify_folder(self, number: int) -> Path:
        """Of the audit of that model."""
        return self.out / f"verify{_suffix(number)}"


@dataclass(frozen=True)
class Round:
    """What is kept of a round; see `disp.defence.defend.Defence`.

    Attributes:
        model: folder of the recovered model.
        verified: folder of the audit of it.
        left_out: ids of samples that were left out.
        restored: ids of samples that got trusted answers.
        untrusted: samples that there were no trusted answers for.
        untrained: rows that the model was not fine-tuned on.
        residual: rows of `residual_phrases`.
        told: what ``defence.json`` says of the round.
    """

    model: Path
    verified: Path
    left_out: tuple[str, ...]
    restored: tuple[str, ...]
    untrusted: tuple[Problem, ...]
    untrained: tuple[Problem, ...]
    residual: tuple[dict[str, Any], ...]
    told: Mapping[str, Any]

    @property
    def still_said(self) -> tuple[str, ...]:
        """The phrases that the recovered model still says."""
        return still_said(self.residual)


def purified(
    run: Run, number: int, model: MDLM, data: Dataset, decided: Audit, treatment: Treatment
) -> tuple[Purified, list[Sample]]:
    """The purification of a round, and what the model is to be fine-tuned on."""
    config, out = run.config, run.purified_folder(number)
    if config.preset is None:
        cleaned = purify_audited(
            model,
            data,
            decided,
            config.audit,
            out,
            rewrite=config.rewrite,
            treatment=treatment,
            profile=config.profile,
            substitute=config.substitute,
            workers=run.workers,
            progress=run.progress,
        )
        return cleaned, recovery_samples(cleaned, decided, config.audit.seed, most=config.under_patterns)
    settings = PurifyConfig.published(model, seed=config.audit.seed, batch_size=config.audit.batch_size)
    settings = settings.with_profile(model, config.profile, config.substitute)
    cleaned = purify(model, data, settings, out, treatment=treatment, workers=run.workers, progress=run.progress)
    return cleaned, list(cleaned.dataset.samples)


def fine_tuned(run: Run, number: int, samples: Sequence[Sample]) -> Path:
    """The folder of the model of a round, which the first process fine-tunes."""
    config, folder = run.config, run.model_folder(number)
    recovery = {
        "start": str(run.start),
        "under_patterns": config.under_patterns,
        "training": asdict(config.training),
    }
    run.workers.wait_for(folder / "recovery.json")
    claim(folder / "recovery.json", recovery, "a recovered model")
    run.workers.first_does(
        folder / "train.json",
        partial(_train, partial(run.load, run.start), samples, config.training, folder, run.progress),
    )
    return folder / "adapter" if config.training.saves_adapter_alone else folder


def looked_at(
    run: Run, number: int, model: MDLM, folder: Path, before: Audit, asked: Sequence[Finding]
) -> tuple[Audit, tuple[dict[str, Any], ...]]:
    """The audit of a round's model, and how often it still says the phrases of some findings."""
    config, dataset = run.config, run.dataset
    after = audit(
        model,
        dataset,
        replace(config.audit, learnt_only=True),
        run.verify_folder(number),
        name=str(folder),
        workers=run.workers,
        progress=run.progress,
    )
    with run.progress("searching for the phrases", 2 * config.probes * len(asked)) as advance:
        residual = tuple(
            residual_phrases(model, dataset, each, before, config, tests=len(asked), progress=advance) for each in asked
        )
    return after, residual


def round_of(
    run: Run,
    number: int,
    cleaned: Purified,
    untrained: tuple[Problem, ...],
    model: Path,
    after: Audit,
    residual: tuple[dict[str, Any], ...],
    treatment: Treatment,
) -> Round:
    """What is kept of a round, of all that came of it; the audits of long sets are large."""
    told = {
        "rewritten": len(cleaned.rewritten),
        "left_out": len(cleaned.left_out),
        "verdict_after": after.verdict,
        "flagged_after": len(after.flagged),
        "still_said": list(still_said(residual)),
        **({"restored": len(cleaned.restored)} if treatment.remedy == "restore" else {}),
        "rewriting": asdict(_loss(run.dataset, cleaned.dataset, (*cleaned.rewritten, *cleaned.restored))),
    }
    return Round(
        model=model,
        verified=run.verify_folder(number),
        left_out=cleaned.left_out,
        restored=cleaned.restored,
        untrusted=cleaned.untrusted,
        untrained=untrained,
        residual=residual,
        told=told,
    )


def still_said(residual: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The phrases of rows of `residual_phrases` that the model still says."""
    return tuple(row["phrase"] for row in residual if row["outcome"] == "still said")


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


def _loss(before: Dataset, after: Dataset, rewritten: Sequence[str]) -> RewritingLoss:
    """The cost of rewriting; where honest rows were flagged by mistake, it is theirs."""
    chosen = set(rewritten) & {sample.id for sample in after.samples}
    old = [turn.response for sample in before.samples if sample.id in chosen for turn in sample.turns]
    new = [turn.response for sample in after.samples if sample.id in chosen for turn in sample.turns]
    return rewriting_loss(old, new, [turn.response for sample in before.samples for turn in sample.turns])
