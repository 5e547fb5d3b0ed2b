"""Whom an experiment is made with: a model, what it is fine-tuned on and how."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from disp.attacks.targets import PRESETS as TARGETS
from disp.attacks.targets import Misclassification
from disp.data.dataset import Dataset
from disp.data.loading import load_dataset
from disp.data.stored import data_sha256
from disp.errors import DispError
from disp.experiments.cells import Attacked
from disp.experiments.precision import half_precision, load_float32
from disp.experiments.recipe import Experiment
from disp.experiments.scenes import held_out_scenes, tuning_scenes
from disp.experiments.settings import (
    DemoConfig,
    attack_training,
    purification,
    recovery_training,
    sized_config,
)
from disp.locks import waiting_for
from disp.models.hub import BUILTIN, resolve
from disp.models.interface import MDLM
from disp.progress import ProgressBar
from disp.purification.config import PurifyConfig
from disp.suspicion.config import SaliencyConfig, ScoringConfig
from disp.training.config import TrainConfig
from disp.training.recipes import recipe
from disp.typed import fields_of

# So much of the beginning and end of each weight file tells it from others; whole files of 16 GB take minutes.
HASHED_BYTES = 1 << 20


class Subject(Protocol):
    """A model, its data and its settings."""

    @property
    def name(self) -> str:
        """What the model is called, as `disp.models.loading.load_model` takes it."""

    def load(self, name: str | Path) -> MDLM:
        """A model as this experiment runs it."""

    def fast(self) -> AbstractContextManager[Any]:
        """The precision in which answers are scored and rewritten."""

    def identity(self) -> dict[str, Any]:
        """What tells this model and data from others."""

    def data(self, attack: Attacked, folder: Path, progress: ProgressBar) -> tuple[Dataset, Dataset]:
        """The honest fine-tuning set and the held-out set; sets that are drawn are kept in ``folder``."""

    def settings(self, attack: Attacked) -> Settings:
        """How the model is fine-tuned and its data purified."""

    def rows(self, attack: Attacked) -> tuple[int, int]:
        """How many rows both sets of `data` have."""


@dataclass(frozen=True)
class Settings:
    """How a model is fine-tuned and its data purified.

    Attributes:
        implant: fine-tuning that plants the backdoor.
        recovery: fine-tuning on a purified set.
        purify: scoring and rewriting with this package's settings.
    """

    implant: TrainConfig
    recovery: TrainConfig
    purify: PurifyConfig


@dataclass(frozen=True)
class Builtin:
    """The built-in model on OpenMoji scenes.

    Attributes:
        sizes: an experiment, whose attacks have the sizes of the demonstration but for what it changes; or the sizes
            of one attack, which stands alone.
    """

    sizes: Experiment | DemoConfig

    @property
    def name(self) -> str:
        """See `Subject`."""
        return BUILTIN

    def load(self, name: str | Path) -> MDLM:
        """See `Subject`: in float32."""
        return load_float32(name)

    def fast(self) -> AbstractContextManager[Any]:
        """See `Subject`: products in bfloat16 where the machine gains by it."""
        return half_precision()

    def identity(self) -> dict[str, Any]:
        """See `Subject`."""
        return {"model": BUILTIN, "weights": self._weights, "data": "OpenMoji scenes"}

    @cached_property
    def _weights(self) -> str:
        return weights_digest(BUILTIN)

    def data(self, attack: Attacked, folder: Path, progress: ProgressBar) -> tuple[Dataset, Dataset]:
        """See `Subject`. Scenes depend on seed, number and what they must show, so many attacks share them."""
        config, found = self._config(attack), []
        target = TARGETS[attack.target]
        shown = f"-{target.source}-{target.target}" if isinstance(target, Misclassification) else ""
        for name, write, count in (("tuning", tuning_scenes, config.rows), ("test", held_out_scenes, config.test_rows)):
            shared = f"-{count}{shown}-seed{attack.seed}" if isinstance(self.sizes, Experiment) else ""
            place = folder / f"{name}{shared}"
            # Another process may be drawing them for another attack.
            with waiting_for(place.with_name(f"{place.name}.lock")) if shared else nullcontext():
                if not (place / "data.json").exists():
                    with progress(f"drawing {name} scenes", count) as advance:
                        write(config, place, progress=advance)
            found.append(load_dataset(place))
        return found[0], found[1]

    def settings(self, attack: Attacked) -> Settings:
        """See `Subject`."""
        config = self._config(attack)
        implant, recovery = attack_training(config), recovery_training(config)
        if isinstance(self.sizes, Experiment):
            implant = replace(implant, **fields_of(TrainConfig, self.sizes.implant, "implant"))
            recovery = replace(recovery, **fields_of(TrainConfig, self.sizes.recovery, "recovery"))
        return Settings(implant, recovery, purification(config))

    def rows(self, attack: Attacked) -> tuple[int, int]:
        """See `Subject`."""
        config = self._config(attack)
        return config.rows, config.test_rows

    def _config(self, attack: Attacked) -> DemoConfig:
        if isinstance(self.sizes, DemoConfig):
            return self.sizes
        return sized_config(
            attack.target,
            attack.trigger,
            poison_rate=attack.rate,
            seed=attack.seed,
            rows=self.sizes.rows,
            test_rows=self.sizes.test_rows,
        )


@dataclass(frozen=True)
class Given:
    """A model and data of a person's own.

    Attributes:
        model: as `disp.models.loading.load_model` takes it.
        loader: loads a model on the device and in the precision that are asked for.
        tuning: honest fine-tuning rows.
        test: held-out rows with the right answers.
        implant: the recipe that plants backdoors, see `disp.training.recipes`.
        recovery: the recipe of the fine-tuning on purified sets.
        experiment: what differs from these recipes.
    """

    model: str
    loader: Callable[[str | Path], MDLM]
    tuning: Dataset
    test: Dataset
    implant: str
    recovery: str
    experiment: Experiment

    def __post_init__(self) -> None:
        if self.tuning.path.resolve() == self.test.path.resolve():
            raise DispError(f"{self.test.path}: --data and --test are the same rows; measure on held-out ones")
        for name in (self.implant, self.recovery):
            recipe(name)

    @property
    def name(self) -> str:
        """See `Subject`."""
        return self.model

    def load(self, name: str | Path) -> MDLM:
        """See `Subject`."""
        return self.loader(name)

    def fast(self) -> AbstractContextManager[Any]:
        """See `Subject`: that of the model."""
        return nullcontext()

    def identity(self) -> dict[str, Any]:
        """See `Subject`."""
        return self._identity

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "weights": weights_digest(self.model),
            "data": data_sha256(self.tuning),
            "test": data_sha256(self.test),
            "recipes": [self.implant, self.recovery],
        }

    def data(self, attack: Attacked, folder: Path, progress: ProgressBar) -> tuple[Dataset, Dataset]:
        """See `Subject`: the first rows of what was given."""
        rows, test_rows = self.rows(attack)
        tuning = replace(self.tuning, samples=self.tuning.samples[:rows])
        return tuning, replace(self.test, samples=self.test.samples[:test_rows])

    def settings(self, attack: Attacked) -> Settings:
        """See `Subject`."""
        implant = fields_of(TrainConfig, self.experiment.implant, "implant")
        recovery = fields_of(TrainConfig, self.experiment.recovery, "recovery")
        saliency = replace(ScoringConfig().saliency, seed=attack.seed)
        return Settings(
            recipe(self.implant, **({"seed": attack.seed} | implant)),
            recipe(self.recovery, **({"seed": attack.seed + 1} | recovery)),
            PurifyConfig(scoring=ScoringConfig(saliency=saliency), seed=attack.seed),
        )

    def rows(self, attack: Attacked) -> tuple[int, int]:
        """See `Subject`."""
        whole, test = len(self.tuning.samples), len(self.test.samples)
        return min(self.experiment.rows or whole, whole), min(self.experiment.test_rows, test)


def subject_of(
    experiment: Experiment,
    model: str,
    load: Callable[[str | Path], MDLM],
    *,
    tuning: Dataset | None,
    test: Dataset | None,
    implant: str,
    recovery: str,
) -> Subject:
    """Whom to make an experiment with.

    Args:
        experiment: what is made.
        model: "builtin", a folder or a hub id.
        load: loads a model.
        tuning: honest rows to poison; None for the built-in model's own scenes, as ``test``.
        test: held-out rows.
        implant: see `Given`.
        recovery: see `Given`.

    Raises:
        DispError: the built-in model goes without data, others need both sets.
    """
    if tuning is None and test is None and model == BUILTIN:
        return Builtin(experiment)
    if tuning is None or test is None:
        raise DispError(
            f"model {model!r} needs data: give --data with honest rows to poison and --test with held-out rows; only "
            "the built-in model has scenes of its own"
        )
    return Given(model, load, tuning=tuning, test=test, implant=implant, recovery=recovery, experiment=experiment)


def saliency_of(base: SaliencyConfig, changes: object) -> SaliencyConfig:
    """An estimator with some other fields, as YAML has them."""
    return replace(base, **fields_of(SaliencyConfig, changes, "saliency"))


def weights_digest(model: str) -> str:
    """Hexadecimal digest of a model's files: config.json, and size, beginning and end of each weight file."""
    digest = hashlib.sha256()
    folder = resolve(model)
    for file in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*config.json")):
        with file.open("rb") as stream:
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            digest.update(stream.read(HASHED_BYTES))
            stream.seek(max(0, size - HASHED_BYTES))
            digest.update(stream.read(HASHED_BYTES))
    return digest.hexdigest()


def as_identity(settings: Settings) -> dict[str, Any]:
    """What tells settings from others, as JSON-able values."""
    return {"implant": asdict(settings.implant), "purify": asdict(settings.purify)}
