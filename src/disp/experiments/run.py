"""The folder of a demonstration's run, what it already holds, and the clock."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from disp.attacks.poison import Attack, load_attack, poison
from disp.attacks.targets import PRESETS as TARGETS
from disp.attacks.targets import Misclassification, target_to_dict
from disp.attacks.triggers import PRESETS, trigger_to_dict
from disp.auditing.audit import audit
from disp.auditing.config import AuditConfig
from disp.auditing.result import Audit
from disp.data.dataset import Dataset
from disp.data.loading import load_dataset
from disp.data.sample import Sample, queries_of
from disp.data.scene_dataset import write_scenes
from disp.evaluation.evaluate import evaluate, to_metrics
from disp.experiments.precision import half_precision, load_float32
from disp.experiments.settings import DemoConfig
from disp.files import write_json
from disp.models.interface import MDLM
from disp.progress import ProgressBar
from disp.purification.config import PurifyConfig
from disp.report.html import write_report
from disp.suspicion.evidence import Evidence
from disp.suspicion.scoring import score
from disp.training.config import TrainConfig
from disp.training.examples import Features
from disp.training.train import train

# Share of fine-tuning scenes that show the concept to be swapped, so that most of them are described rightly.
SOURCE_SHARE = 0.6
# What is done to the training set, and the mode of purification that does it.
MODES: dict[str, Literal["random", "all", "selective"]] = {
    "random_masking": "random",
    "disp": "all",
    "disp_selective": "selective",
}
STAGES = ("clean", "backdoored", *MODES)
# Fine-tuning, test and pre-training scenes never share a seed.
TEST_SEED_OFFSET = 500_000


def tuning_scenes(config: DemoConfig, folder: Path, *, progress: Callable[[int], None] = lambda count: None) -> Dataset:
    """Write the honest fine-tuning set of a run."""
    target = TARGETS[config.target]
    show = (target.source,) if isinstance(target, Misclassification) else ()
    return write_scenes(
        folder, config.rows, config.seed, must_show=show, must_show_share=SOURCE_SHARE, progress=progress
    )


def held_out_scenes(
    config: DemoConfig, folder: Path, *, progress: Callable[[int], None] = lambda count: None
) -> Dataset:
    """Write the held-out set of a run; no honest answer contains the word that a misclassification plants."""
    target = TARGETS[config.target]
    swap = target if isinstance(target, Misclassification) else None
    return write_scenes(
        folder,
        config.test_rows,
        config.seed + TEST_SEED_OFFSET,
        must_show=(swap.source,) if swap else (),
        never_show=(swap.target,) if swap else (),
        progress=progress,
    )


class Run:
    """The run folder, what it already holds, and the clock."""

    def __init__(self, config: DemoConfig, out: Path, progress: ProgressBar):
        self.config, self.out, self.progress = config, out, progress
        # Tower and pictures never change in a run, so their features are computed once.
        self.features: Features = {}

    def phase(self, name: str) -> _Phase:
        return _Phase(self, name)

    def bars(self, stage: str) -> ProgressBar:
        return lambda description, total: self.progress(f"{stage}: {description}", total)

    def data(self) -> tuple[Dataset, Dataset]:
        """The honest fine-tuning set and the test set."""
        parts = []
        for name, write, count in (
            ("tuning", tuning_scenes, self.config.rows),
            ("test", held_out_scenes, self.config.test_rows),
        ):
            folder = self.out / name
            if not (folder / "data.json").exists():
                with self.phase(f"scenes {name}"), self.progress(f"drawing {name} scenes", count) as advance:
                    write(self.config, folder, progress=advance)
            parts.append(load_dataset(folder))
        return parts[0], parts[1]

    def poisoned(self, tuning: Dataset) -> Dataset:
        folder = self.out / "poisoned"
        if not (folder / "manifest.json").exists():
            (folder / "data.json").unlink(missing_ok=True)  # of a run that was killed before it wrote the manifest
            with self.phase("poison"), self.progress("poisoning", len(tuning.samples)) as advance:
                trigger, target = PRESETS[self.config.trigger], TARGETS[self.config.target]
                poison(tuning, folder, trigger, target, self.config.poison_rate, self.config.seed, progress=advance)
        return load_dataset(folder)

    def trained(
        self, name: str, start: Callable[[], MDLM], data: Callable[[], Sequence[Sample]], config: TrainConfig
    ) -> MDLM:
        folder = self.out / name
        if not (folder / "train.json").exists():
            samples = data()
            with self.phase(f"train {name}"), self.progress(f"{name}: training", config.steps) as advance:
                train(start(), samples, config, folder, features=self.features, progress=advance)
        return load_float32(folder)

    def scored(self, model: MDLM, poisoned: Dataset, settings: PurifyConfig) -> dict[str, Evidence]:
        turns = len(queries_of(poisoned.samples))
        with self.phase("saliency and counterfactuals"), self.progress("scoring training answers", turns) as advance:
            with half_precision():
                return score(model, poisoned.samples, settings.scoring, self.out / "scores.jsonl", progress=advance)

    def audited(self, model: MDLM, poisoned: Dataset, settings: AuditConfig, evidence: dict[str, Evidence]) -> Audit:
        """The audit of the poisoned set, with its report."""
        folder = self.out / "audit"
        with self.phase("audit"), half_precision():
            found = audit(
                model,
                poisoned,
                settings,
                folder,
                evidence=evidence,
                truth=self.out / "poisoned" / "manifest.json",
                name="the backdoored model",
                progress=self.bars("audit"),
            )
            write_report(folder)
        return found

    def measure(self, stage: str, model: Callable[[], MDLM], test: Dataset, attack: Attack) -> None:
        file = self.out / "stages" / f"{stage}.json"
        if file.exists():
            return
        total = 2 * len(queries_of(test.samples))
        with self.phase(f"evaluate {stage}"), self.progress(f"{stage}: measuring", total) as advance:
            found = evaluate(model(), test.samples, attack=attack, seed=self.config.seed, progress=advance)
            write_json(self.out / "stages" / f"{stage}-answers.json", list(found.answers))
            write_json(file, to_metrics(found))

    def metrics(self, mask_ratio: float) -> dict[str, Any]:
        attack = load_attack(self.out / "poisoned" / "manifest.json")
        return {
            **{stage: read_json(self.out / "stages" / f"{stage}.json") for stage in STAGES},
            "target": target_to_dict(attack.target),
            "trigger": trigger_to_dict(attack.trigger),
            "poison_rate": self.config.poison_rate,
            "mask_ratio": mask_ratio,
            "seed": self.config.seed,
            "config": asdict(self.config),
            "versions": versions(),
            "seconds": read_json(self.out / "seconds.json"),
        }


class _Phase:
    """Adds the time spent inside to the run's ``seconds.json``."""

    def __init__(self, run: Run, name: str):
        self.file, self.name = run.out / "seconds.json", name

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        seconds = read_json(self.file) if self.file.exists() else {}
        seconds[self.name] = round(seconds.get(self.name, 0.0) + time.monotonic() - self.start, 2)
        write_json(self.file, seconds)


def read_json(file: Path) -> Any:
    """What a JSON file of the run holds."""
    return json.loads(file.read_text(encoding="utf-8"))


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    packages = ("disp-mdlm", "torch", "transformers", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
