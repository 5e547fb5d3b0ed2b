"""The folder of one attack: data, the backdoored model, what was found about its answers. All defences share it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from disp.attacks.poison import Attack, load_attack, poison
from disp.attacks.targets import PRESETS as TARGETS
from disp.attacks.targets import target_to_dict
from disp.attacks.triggers import PRESETS as TRIGGERS
from disp.attacks.triggers import trigger_to_dict
from disp.auditing.audit import audit
from disp.auditing.result import Audit
from disp.data.dataset import Dataset
from disp.data.loading import load_dataset
from disp.data.sample import Sample, queries_of
from disp.data.saving import data_path
from disp.evaluation.evaluate import evaluate, to_metrics
from disp.experiments.cells import Attacked
from disp.experiments.phases import Phases
from disp.experiments.settings import auditing
from disp.experiments.subject import Settings, Subject, as_identity
from disp.files import claim, read_json, write_json
from disp.models.fingerprint import fingerprint
from disp.models.interface import MDLM
from disp.processes import devices_of_run
from disp.progress import ProgressBar
from disp.purification.config import PurifyConfig
from disp.report.html import write_report
from disp.scale.answers import Answer
from disp.suspicion.evidence import Evidence
from disp.suspicion.scoring import score
from disp.training.config import TrainConfig
from disp.training.examples import Features
from disp.training.train import train


class AttackRun:
    """One attack, made and kept in a folder; what is there already is not made again.

    Attributes:
        subject: whom it is made with.
        attack: which it is.
        folder: its own, below the experiment's, named by what it depends on; or ``out`` itself, if it stands alone.
        settings: how models are fine-tuned and data purified.
        phases: the clock of what its defences share.
        audited: whether one of the defences that are to run needs the audit, so that answers are scored for both.
        alone: whether it is no part of an experiment, but has ``out`` for itself.
    """

    def __init__(
        self,
        subject: Subject,
        attack: Attacked,
        out: Path,
        progress: ProgressBar,
        *,
        audited: bool = False,
        alone: bool = False,
    ):
        self.subject, self.attack, self.out, self.progress, self.audited = subject, attack, out, progress, audited
        self.settings: Settings = subject.settings(attack)
        self._run = {
            **subject.identity(),
            **as_identity(self.settings),
            "trigger": trigger_to_dict(TRIGGERS[attack.trigger]),
            "target": target_to_dict(TARGETS[attack.target]),
            "rate": attack.rate,
            "seed": attack.seed,
            "rows": list(subject.rows(attack)),
        }
        self.alone = alone
        self.folder = out if alone else out / "attacks" / f"{attack.name}-{digest(self._run)}"
        self.phases = Phases(self.folder)
        # Tower and pictures never change where the tower is frozen, so their features are computed once.
        self.features: Features | None = None if self.settings.implant.train_vision else {}
        self._model: MDLM | None = None

    def begin(self) -> None:
        """Write down whose folder it is."""
        claim(self.folder / "run.json", self._run, "an attack")

    def bars(self, label: str = "") -> ProgressBar:
        """Progress bars that say what they are of, and of which attack where there may be several."""
        whose = label if self.alone else f"{self.attack.name} {label}".strip()
        return lambda description, total: self.progress(f"{whose}: {description}" if whose else description, total)

    # --- data ----------------------------------------------------------------------------------------------------

    @cached_property
    def _honest(self) -> tuple[Dataset, Dataset]:
        return self.subject.data(self.attack, self.out if self.alone else self.out / "scenes", self.bars())

    @property
    def test(self) -> Dataset:
        """The held-out set."""
        return self._honest[1]

    @property
    def tuning(self) -> Dataset:
        """The fine-tuning set before it was poisoned."""
        return self._honest[0]

    @cached_property
    def poisoned(self) -> Dataset:
        """The poisoned fine-tuning set."""
        folder, tuning = self.folder / "poisoned", self.tuning
        if not self.manifest.exists():
            trigger, target = TRIGGERS[self.attack.trigger], TARGETS[self.attack.target]
            count = len(tuning.samples)
            with self.phases.phase("poison", count), self.bars()("poisoning", count) as advance:
                poison(tuning, folder, trigger, target, self.attack.rate, self.attack.seed, progress=advance)
        return load_dataset(data_path(tuning, folder), folder / "images")

    @property
    def manifest(self) -> Path:
        """The file that says which rows are poisoned."""
        return self.folder / "poisoned" / "manifest.json"

    @cached_property
    def planted(self) -> Attack:
        """Trigger and target as the manifest has them."""
        return load_attack(self.manifest)

    @cached_property
    def poisoned_ids(self) -> frozenset[str]:
        """Ids of the poisoned rows."""
        return frozenset(row["id"] for row in read_json(self.manifest)["poisoned_rows"])

    # --- models --------------------------------------------------------------------------------------------------

    @property
    def backdoored(self) -> Path:
        """The folder of the backdoored model."""
        return self.folder / "backdoored"

    def model(self) -> MDLM:
        """The backdoored model, which is made where there is none yet and held until `release`."""
        if self._model is None:
            samples = self.poisoned.samples
            self._model = self.fine_tuned(
                self.backdoored.name, self.subject.name, lambda: samples, self.settings.implant, self.backdoored
            )
        return self._model

    def release(self) -> None:
        """Let the backdoored model go, so that another one has room."""
        self._model = None

    def fine_tuned(
        self,
        label: str,
        start: str | Path,
        samples: Callable[[], Sequence[Sample]],
        config: TrainConfig,
        folder: Path,
        phases: Phases | None = None,
    ) -> MDLM:
        """A model that was fine-tuned in ``folder``, or is now.

        Args:
            label: what the model is called.
            start: the model to start from.
            samples: makes the fine-tuning set.
            config: how.
            folder: where to.
            phases: the clock, if not the attack's.
        """
        if not (folder / "train.json").exists():
            rows = samples()
            self.release()
            steps = config.for_turns(len(queries_of(rows)), devices_of_run()).steps
            features = None if config.train_vision else self.features
            phase = "implant" if folder == self.backdoored else "recover"
            with (phases or self.phases).phase(phase, steps), self.bars(label)("training", steps) as advance:
                train(self.subject.load(start), rows, config, folder, features=features, progress=advance)
        return self.subject.load(folder)

    # --- what is found and measured ------------------------------------------------------------------------------

    def evidence(self, config: PurifyConfig, *, counterfactual: bool = False) -> dict[str, Evidence]:
        """Saliency of every training answer, and with ``counterfactual`` its suspicion, under one estimator.

        Defences with the same estimator share the file.
        """
        key = digest({"scoring": asdict(config.scoring), "question": config.question, "first": config.first_only})
        whole = self.folder / "scores" / f"{key}-with-suspicion.jsonl"
        own = config.scoring == self.settings.purify.scoring and config.question is None and not config.first_only
        counterfactual = counterfactual or (own and (self.audited or whole.exists()))
        file = whole if counterfactual else self.folder / "scores" / f"{key}.jsonl"
        model, asked = self.model(), [config.asked(sample) for sample in self.poisoned.samples]
        turns = len(queries_of(asked))
        label = "score with suspicion" if counterfactual else "score"
        units = turns * config.scoring.saliency.probes
        if file.with_suffix(".done").exists():
            return score(model, asked, config.scoring, file, counterfactual=counterfactual)
        bar = self.bars()("scoring training answers", turns)
        with self.phases.phase(label, units), self.subject.fast(), bar as advance:
            found = score(model, asked, config.scoring, file, counterfactual=counterfactual, progress=advance)
        file.with_suffix(".done").touch()
        return found

    @cached_property
    def audit(self) -> Audit:
        """The audit of the poisoned set, with its report."""
        evidence = self.evidence(self.settings.purify, counterfactual=True)
        rows = len(self.poisoned.samples)
        with self.phases.phase("audit", rows), self.subject.fast():
            found = audit(
                self.model(),
                self.poisoned,
                auditing(self.settings.purify),
                self.folder / "audit",
                evidence=evidence,
                truth=self.manifest,
                name="the backdoored model",
                progress=self.bars("audit"),
            )
            write_report(self.folder / "audit")
        return found

    def chosen_ratio(self) -> float:
        """The mask ratio that an audit chooses, or that of the settings where it chooses none."""
        file = self.folder / "audit" / "audit.json"
        if not file.exists():
            found = self.audit.ratio
            return self.settings.purify.mask_ratio if found is None else found.ratio
        said = read_json(file)["mask_ratio"]
        return self.settings.purify.mask_ratio if said is None else float(said["ratio"])

    def measured(
        self,
        stage: str,
        model: Callable[[], MDLM],
        folder: Path,
        phases: Phases,
        answer: Answer | None = None,
    ) -> dict[str, Any]:
        """What a model answers to the held-out set, in ``folder/STAGE.json``: metrics, and the model's fingerprint.

        Args:
            stage: what the file is called.
            model: makes the model.
            folder: where the file lies.
            phases: the clock.
            answer: what answers a batch of queries, where that is not the model alone.
        """
        file = folder / f"{stage}.json"
        if not file.exists():
            found_model, total = model(), 2 * len(queries_of(self.test.samples))
            with phases.phase("measure", total), self.bars(stage)("measuring", total) as advance:
                found = evaluate(
                    found_model,
                    self.test.samples,
                    attack=self.planted,
                    answer=answer,
                    seed=self.attack.seed,
                    progress=advance,
                )
            write_json(folder / f"{stage}-answers.json", list(found.answers))
            write_json(file, {"metrics": to_metrics(found), "weights": fingerprint(found_model)})
        return dict(read_json(file))

    def before(self) -> dict[str, dict[str, Any]]:
        """The original and the backdoored model, measured."""
        stages = self.folder / "stages"
        self.poisoned  # noqa: B018 - the manifest is there from here on
        return {
            "clean": self.measured("clean", lambda: self.subject.load(self.subject.name), stages, self.phases),
            "backdoored": self.measured("backdoored", self.model, stages, self.phases),
        }


def digest(values: Any) -> str:
    """Six hexadecimal digits that tell JSON-able values from others, for names of folders."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:6]
