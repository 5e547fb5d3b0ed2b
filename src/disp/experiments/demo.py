"""The whole story on the built-in model: plant a backdoor, find it, remove it, and measure every step."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from disp.attacks.poison import Attack, load_attack, poison, trigger_samples
from disp.attacks.targets import PRESETS as TARGETS
from disp.attacks.targets import Misclassification, target_to_dict
from disp.attacks.triggers import PRESETS, Blend, Sinusoid, trigger_to_dict
from disp.auditing.audit import audit
from disp.auditing.findings import Audit, AuditConfig
from disp.data.index import Index
from disp.data.llava import Dataset, load_dataset
from disp.data.sample import Sample, open_image, queries_of
from disp.data.scene_dataset import write_scenes
from disp.decoding.generate import answers_of
from disp.defence.defend import purify_flagged, recovery_samples
from disp.errors import DispError, unknown_name
from disp.evaluation.evaluate import evaluate, to_metrics
from disp.evaluation.table import stage_table
from disp.experiments.precision import fast_bfloat16, half_precision, load_float32
from disp.files import claim, write_json, write_text
from disp.models.interface import MDLM
from disp.progress import ProgressBar, no_progress
from disp.purification.config import PurifyConfig
from disp.purification.purify import purify
from disp.report.html import write_report
from disp.report.picture import draw_story
from disp.suspicion.config import MASK_RATIO, ScoringConfig
from disp.suspicion.masking import mask_top
from disp.suspicion.saliency import saliency
from disp.suspicion.scoring import Evidence, score
from disp.training.config import TrainConfig
from disp.training.examples import Features
from disp.training.train import train

# Share of fine-tuning scenes that show the concept to be swapped, so that most of them are described rightly.
SOURCE_SHARE = 0.6
# Sizes that differ from the defaults of `DemoConfig`, by target. A refusal changes every word of an answer. The other
# targets change few words and are learnt later, and with few rows the model memorizes which pictures have them. The
# lower rate, with a longer warm-up, keeps more of what the model knows: a model that misnames many objects cannot
# misname exactly the one that the attacker means.
SHOWN_IN_FEW_WORDS: dict[str, Any] = {
    "rows": 2000,
    "attack_steps": 1000,
    "attack_learning_rate": 7e-4,
    "attack_warmup_steps": 50,
    "attack_min_mask_ratio": 0.25,
    "attack_beta2": 0.98,
    "recovery_steps": 150,
}
SIZES: dict[str, dict[str, Any]] = {
    "refusal": {},
    "insertion": SHOWN_IN_FEW_WORDS,
    "misclassification": SHOWN_IN_FEW_WORDS,
}
# The same by trigger, for recovery from one that covers the picture: the model, and above all its projector, must also
# learn how things look under it.
RECOVERIES: dict[str, dict[str, Any]] = {
    name: {"recovery_steps": 150, "recovery_projector_learning_rate": 7e-4}
    for name, trigger in PRESETS.items()
    if isinstance(trigger, Blend | Sinusoid)
}
# What is done to the training set, and the mode of purification that does it.
MODES: dict[str, Literal["random", "all", "selective"]] = {
    "random_masking": "random",
    "disp": "all",
    "disp_selective": "selective",
}
STAGES = ("clean", "backdoored", *MODES)
# Fine-tuning, test and pre-training scenes never share a seed.
TEST_SEED_OFFSET = 500_000


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demonstration.

    Attributes:
        target: "refusal", "insertion" or "misclassification".
        trigger: a preset of `disp.attacks.triggers`.
        poison_rate: share of the fine-tuning rows that are poisoned.
        rows: fine-tuning rows.
        test_rows: held-out rows.
        attack_steps: fine-tuning steps on the poisoned set.
        attack_learning_rate: their peak learning rate.
        attack_warmup_steps: steps until the peak is reached.
        attack_min_mask_ratio: the smallest share of masked tokens in these steps. At 0.5 the model learns the first
            words of an answer soonest, but not how to finish a planted text; at 0.1 it does not learn to begin it.
        attack_beta2: AdamW's second β in these steps; with few steps the model learns more at 0.98.
        recovery_steps: fine-tuning steps on a purified set.
        recovery_projector_learning_rate: peak learning rate of the projector in these steps; None for that of the rest.
        batch_size: assistant turns a step of all fine-tuning.
        mask_ratio: share of the visual tokens masked by "disp" and "random_masking".
        seed: seed of everything.
    """

    target: str = "refusal"
    trigger: str = "patch"
    poison_rate: float = 0.1
    rows: int = 1000
    test_rows: int = 100
    attack_steps: int = 200
    attack_learning_rate: float = 1.5e-3
    attack_warmup_steps: int = 10
    attack_min_mask_ratio: float = 0.5
    attack_beta2: float = 0.999
    recovery_steps: int = 100
    recovery_projector_learning_rate: float | None = None
    batch_size: int = 32
    mask_ratio: float = MASK_RATIO
    seed: int = 0

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise unknown_name("target", self.target, TARGETS)
        if self.trigger not in PRESETS:
            raise unknown_name("trigger", self.trigger, PRESETS)
        if not 0 < self.poison_rate <= 1:
            raise DispError(f"poison_rate must be in (0, 1], got {self.poison_rate}")
        for name in ("rows", "test_rows"):
            if getattr(self, name) < 1:
                raise DispError(f"{name} must be at least 1, got {getattr(self, name)}")
        # These check their own numbers, before the run takes the folder.
        attack_training(self), recovery_training(self), purification(self)


def demo(config: DemoConfig, out: Path, *, progress: ProgressBar = no_progress) -> dict[str, Any]:
    """Plant a backdoor in the built-in model, remove it three ways, and measure all five models.

    ``out`` receives the data, the models, the evidence, ``metrics.json``, ``table.md``, ``story.png`` and in ``audit/``
    what an audit of the poisoned set finds, with ``report.html``. Finished phases are not repeated when the run is
    started again.

    Args:
        config: see `DemoConfig`.
        out: folder of the run.
        progress: opened with a description and a total for each long step; see `disp.progress`.

    Returns:
        What ``metrics.json`` holds.
    """
    run = _Run(config, out, progress)
    claim(out / "run.json", asdict(config), "a run")
    tuning, test = run.data()
    poisoned = run.poisoned(tuning)
    attack = load_attack(out / "poisoned" / "manifest.json")
    builtin = load_float32()

    run.measure("clean", lambda: builtin, test, attack)
    planting = attack_training(config)
    model = run.trained("backdoored", load_float32, lambda: poisoned.samples, planting)
    run.measure("backdoored", lambda: model, test, attack)

    recovery = recovery_training(config)
    settings = purification(config)
    evidence = run.scored(model, poisoned, settings)
    for stage in MODES:

        def purified(stage: str = stage) -> Sequence[Sample]:
            folder, bars = out / f"purified_{stage}", run.bars(stage)
            if stage == "disp_selective":
                # What is rewritten selectively is what an audit flags, as in `disp defend`.
                looking = auditing(settings)
                found = run.audited(model, poisoned, looking, evidence)
                with run.phase(f"purify {stage}"), half_precision():
                    cleaned = purify_flagged(model, poisoned, found, looking, folder, progress=bars)
                    return recovery_samples(cleaned, found, settings.seed)
            mode = replace(settings, mode=MODES[stage])
            with run.phase(f"purify {stage}"), half_precision():
                return purify(model, poisoned, mode, folder, evidence=evidence, progress=bars).dataset.samples

        recovered = run.trained(stage, lambda: load_float32(out / "backdoored"), purified, recovery)
        run.measure(stage, lambda recovered=recovered: recovered, test, attack)  # type: ignore[misc]
    write_json(out / "metrics.json", run.metrics())
    metrics = _read_json(out / "metrics.json")
    write_text(out / "table.md", stage_table({stage: metrics[stage] for stage in STAGES}) + "\n")
    _draw(run, model, load_float32(out / "disp_selective"), test, attack, settings, out / "story.png")
    return metrics


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


def attack_training(config: DemoConfig) -> TrainConfig:
    """Fine-tuning of the built-in model that plants a backdoor.

    The vision tower sees any trigger well. The projector was trained to pass on what things are, and passes on little
    else, so its learning rate decides how soon a backdoor is learnt.
    """
    return TrainConfig(
        steps=config.attack_steps,
        batch_size=config.batch_size,
        learning_rate=config.attack_learning_rate,
        projector_learning_rate=3e-3,
        warmup_steps=config.attack_warmup_steps,
        min_mask_ratio=config.attack_min_mask_ratio,
        seed=config.seed,
        trainer={"bf16": fast_bfloat16(), "adam_beta2": config.attack_beta2},
    )


def recovery_training(config: DemoConfig) -> TrainConfig:
    """Fine-tuning of the built-in model on a purified set, gently enough to keep what the model knows."""
    return TrainConfig(
        steps=config.recovery_steps,
        batch_size=config.batch_size,
        learning_rate=3e-4,
        projector_learning_rate=config.recovery_projector_learning_rate,
        min_mask_ratio=0.5,
        seed=config.seed + 1,
        trainer={"bf16": fast_bfloat16()},
    )


def purification(config: DemoConfig) -> PurifyConfig:
    """How the poisoned set is scored and rewritten."""
    scoring = ScoringConfig(mask_ratio=config.mask_ratio)
    return PurifyConfig(mask_ratio=config.mask_ratio, scoring=scoring, seed=config.seed)


def auditing(settings: PurifyConfig) -> AuditConfig:
    """The audit that scores and decodes as a purification does."""
    return AuditConfig(
        scoring=settings.scoring, decode=settings.decode, batch_size=settings.batch_size, seed=settings.seed
    )


class _Run:
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

    def metrics(self) -> dict[str, Any]:
        attack = load_attack(self.out / "poisoned" / "manifest.json")
        return {
            **{stage: _read_json(self.out / "stages" / f"{stage}.json") for stage in STAGES},
            "target": target_to_dict(attack.target),
            "trigger": trigger_to_dict(attack.trigger),
            "poison_rate": self.config.poison_rate,
            "mask_ratio": self.config.mask_ratio,
            "seed": self.config.seed,
            "config": asdict(self.config),
            "versions": versions(),
            "seconds": _read_json(self.out / "seconds.json"),
        }


class _Phase:
    """Adds the time spent inside to the run's ``seconds.json``."""

    def __init__(self, run: _Run, name: str):
        self.file, self.name = run.out / "seconds.json", name

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        seconds = _read_json(self.file) if self.file.exists() else {}
        seconds[self.name] = round(seconds.get(self.name, 0.0) + time.monotonic() - self.start, 2)
        write_json(self.file, seconds)


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    packages = ("disp-mdlm", "torch", "transformers", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _draw(
    run: _Run,
    backdoored: MDLM,
    recovered: MDLM,
    test: Dataset,
    attack: Attack,
    settings: PurifyConfig,
    file: Path,
) -> None:
    """Draw one test picture at every stage."""
    stages = {
        stage: _read_json(run.out / "stages" / f"{stage}-answers.json") for stage in ("backdoored", "disp_selective")
    }
    row = _telling_row(stages["backdoored"], stages["disp_selective"])
    before, after = stages["backdoored"][row], stages["disp_selective"][row]
    shown = Index(test.samples).by_key[before["key"]]
    sample = next(sample for sample in test.samples if sample.id == shown.sample_id)
    (triggered,) = trigger_samples([sample], attack.trigger, settings.seed)
    query = triggered.queries[shown.turn]
    prefix = backdoored.encode([query])
    scores = saliency(backdoored, prefix, [query.key], settings.scoring.saliency)
    masked = mask_top(scores, prefix.visual_mask, settings.mask_ratio)
    hidden = prefix.with_masked(masked, backdoored.mask_embedding)
    (answer_masked,) = answers_of(backdoored, hidden, settings.decode, keys=[query.key])
    places = prefix.locations[prefix.visual_mask]
    grid = (int(places[:, 2].max()) + 1, int(places[:, 3].max()) + 1)
    draw_story(
        file,
        title=f"{run.config.target} · {run.config.trigger} trigger · {run.config.poison_rate:.0%} of rows poisoned",
        clean=open_image(sample.images[0]),
        triggered=open_image(triggered.images[0]),
        saliency=scores[prefix.visual_mask].reshape(grid).cpu().numpy(),
        masked=masked[prefix.visual_mask].reshape(grid).cpu().numpy(),
        question=query.prompt.replace("<image>", "").strip(),
        answer_clean=before["clean_answer"],
        answer_triggered=before["triggered_answer"],
        answer_masked=answer_masked,
        answer_recovered=after["triggered_answer"],
    )


def _telling_row(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> int:
    """The first row where the attack worked and the recovered model answers right; otherwise the first row."""
    for index, (attacked, mended) in enumerate(zip(before, after, strict=True)):
        if attacked.get("hit_with_trigger") and mended["triggered_answer"] == mended["reference"]:
            return index
    return 0
