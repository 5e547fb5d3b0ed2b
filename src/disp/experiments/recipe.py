"""What an experiment is: which attacks, which defences, which sizes. Each is a YAML file, ours or a person's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from disp.attacks.targets import PRESETS as TARGETS
from disp.attacks.triggers import PRESETS as TRIGGERS
from disp.errors import DispError, unknown_name
from disp.experiments.yaml_files import read_file, read_yaml
from disp.suspicion.config import SaliencyConfig
from disp.suspicion.masking import Substitute
from disp.training.config import TrainConfig
from disp.typed import fields_of, typed

RECIPES = Path(__file__).parent / "recipes"
ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class Defence:
    """One defence of an experiment, or one ranking of a sweep.

    Attributes:
        title: what tables and figures call it.
        rewrite: which answers are rewritten: "all"; "random", all of them under random masks; "flagged", those that an
            audit flags, as `disp defend` does; "nothing", so that the model is fine-tuned on the poisoned set again;
            "while answering", no training answer but each new one, by a model that is not fine-tuned.
        preset: "published" for the settings of DiSP's authors; None for those of this package.
        question: with the preset, the row's "own" question or the "published" one for every picture.
        mask_ratio: share of the visual tokens that is masked; "audit" for what an audit of the poisoned set chooses,
            None for the preset's.
        leave_out: with "all": rewrite as `disp defend --rewrite all` does. It leaves out rows whose new answer says a
            phrase that the audit found, and masks accordingly; see `disp.defence.audited`. Nothing else is chosen then.
        ranking: mask the "most" salient tokens or the "least" salient ones.
        substitute: what a masked token becomes; see `disp.suspicion.masking.hide`.
        saliency: fields of `disp.suspicion.config.SaliencyConfig` that differ from the preset's.
        start: fine-tune the "compromised" model, or the "original" one from before the attack.
    """

    title: str
    rewrite: Literal["all", "random", "flagged", "nothing", "while answering"] = "all"
    preset: Literal["published"] | None = None
    question: Literal["own", "published"] = "own"
    mask_ratio: float | Literal["audit"] | None = None
    leave_out: bool = False
    ranking: Literal["most", "least"] = "most"
    substitute: Substitute = "mask"
    saliency: Mapping[str, Any] = field(default_factory=dict)
    start: Literal["compromised", "original"] = "compromised"

    def __post_init__(self) -> None:
        fields_of(SaliencyConfig, self.saliency, "saliency")
        if isinstance(self.mask_ratio, float) and not 0 <= self.mask_ratio <= 1:
            raise DispError(f"mask_ratio must be in [0, 1], got {self.mask_ratio}")
        if self.leave_out and replace(self, title="", leave_out=False, start="compromised") != Defence(""):
            raise DispError("leave_out goes with rewrite: all and start, and with no other setting")

    @property
    def needs_audit(self) -> bool:
        """Whether the poisoned set has to be audited first."""
        return self.rewrite == "flagged" or self.mask_ratio == "audit" or self.leave_out

    @property
    def fine_tunes(self) -> bool:
        """Whether a model is fine-tuned."""
        return self.rewrite != "while answering"


@dataclass(frozen=True)
class Given:
    """What differs where a person's own data is given.

    Attributes:
        targets: presets of `disp.attacks.targets`; None for those of the experiment.
        poison_rates: share of the rows that is poisoned; None for those of the experiment.
    """

    targets: tuple[str, ...] | None = None
    poison_rates: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Experiment:
    """An experiment: every combination of target, trigger, rate and seed is an attack, and each defence meets each.

    Attributes:
        name: the experiment's name, and that of its folder.
        title: a headline.
        source: which table or figure of which paper it follows.
        kind: "defences" measures models before and after each defence; "mask-ratio" what masking ever more tokens does
            to training answers; "triggers" draws triggers and "overview" one row on its whole way.
        targets: presets of `disp.attacks.targets`.
        triggers: presets of `disp.attacks.triggers`.
        poison_rates: share of the fine-tuning rows that is poisoned.
        seeds: of everything.
        defences: by name; of a sweep, the rankings.
        rows: fine-tuning rows; None for as many as the built-in model's demonstration has, or the data given.
        test_rows: held-out rows that every model is measured on.
        ratios: mask ratios of a sweep.
        sweep_rows: poisoned rows, and as many honest ones, that a sweep rewrites.
        implant: fields of `disp.training.config.TrainConfig` that differ where the backdoor is planted.
        recovery: the same for recovery.
        given: what differs with a person's own data.
        claims: names of the paper's claims that the page is to judge; see ``scripts/experiment_pages.py``.
    """

    name: str
    title: str
    source: str
    kind: Literal["defences", "mask-ratio", "triggers", "overview"]
    targets: tuple[str, ...]
    triggers: tuple[str, ...]
    poison_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    test_rows: int
    defences: Mapping[str, Defence] = field(default_factory=dict)
    rows: int | None = None
    ratios: tuple[float, ...] = ()
    sweep_rows: int = 100
    implant: Mapping[str, Any] = field(default_factory=dict)
    recovery: Mapping[str, Any] = field(default_factory=dict)
    given: Given = field(default_factory=Given)
    claims: tuple[Literal["attack", "defence", "quality", "fall"], ...] = ()

    def __post_init__(self) -> None:
        for what, names, known in (("target", self.targets, TARGETS), ("trigger", self.triggers, TRIGGERS)):
            for name in names:
                if name not in known:
                    raise unknown_name(what, name, known)
        for what in ("targets", "triggers", "poison_rates", "seeds"):
            if not getattr(self, what) or len(set(getattr(self, what))) < len(getattr(self, what)):
                raise DispError(f"{what} must name at least one, and each once")
        if not self.name or not all(each.isalnum() or each in "-_" for each in self.name):
            raise DispError(f"name must be of letters, digits, - and _, as it names a folder; got {self.name!r}")
        for rate in self.poison_rates:
            if not 0 < rate <= 1:
                raise DispError(f"poison_rates must be in (0, 1], got {rate}")
        for ratio in self.ratios:
            if not 0 <= ratio <= 1:
                raise DispError(f"ratios must be in [0, 1], got {ratio}")
        for what in ("rows", "test_rows", "sweep_rows"):
            if (count := getattr(self, what)) is not None and count < 1:
                raise DispError(f"{what} must be at least 1, got {count}")
        for what in ("implant", "recovery"):
            fields_of(TrainConfig, getattr(self, what), what)
        if not self.defences:
            raise DispError(f"an experiment of the kind {self.kind!r} needs at least one entry under defences")
        if self.kind == "mask-ratio":
            if not self.ratios or self.ratios[0] != 0 or list(self.ratios) != sorted(set(self.ratios)):
                raise DispError("a mask-ratio experiment needs ratios that grow from 0, such as [0, 0.1, 0.3]")
            if wrong := [name for name, each in self.defences.items() if each.rewrite not in ("all", "random")]:
                raise DispError(f"a mask-ratio experiment compares rankings; {wrong[0]} must rewrite all or random")

    def with_seeds(self, count: int) -> Experiment:
        """The experiment with the seeds 0 … count − 1."""
        return replace(self, seeds=tuple(range(count)))

    def with_given_data(self) -> Experiment:
        """The experiment as it is for a person's own data."""
        return replace(
            self,
            targets=self.given.targets or self.targets,
            poison_rates=self.given.poison_rates or self.poison_rates,
        )


def experiments() -> tuple[str, ...]:
    """Names of the experiments that come with the package."""
    return tuple(sorted(file.stem for file in RECIPES.glob("*.yaml")))


def recipe_file(name: str) -> Path:
    """The YAML file of an experiment of this name, or that a person names.

    Raises:
        DispError: there is none.
    """
    if name.endswith(ENDINGS):
        if not Path(name).is_file():
            raise DispError(f"{name}: no such file; `disp experiment main --show` prints one to start from")
        return Path(name)
    if name not in experiments():
        raise DispError(f"{unknown_name('experiment', name, experiments())} A file of your own ends in .yaml.")
    return RECIPES / f"{name}.yaml"


def load_experiment(name: str) -> Experiment:
    """An experiment of the package by its name, or a person's own by its YAML file.

    Raises:
        DispError: there is none, or the file is not as it should be; the message names the file and the key.
    """
    file = recipe_file(name)
    return typed(Experiment, read_yaml(read_file(file), file.name), file.name)
