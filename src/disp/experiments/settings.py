"""Sizes of the demonstration, and the configs that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from disp.attacks.targets import PRESETS as TARGETS
from disp.attacks.triggers import PRESETS, Blend, Sinusoid
from disp.auditing.config import AuditConfig
from disp.errors import DispError, check_counts, unknown_name
from disp.experiments.precision import fast_bfloat16
from disp.purification.config import PUBLISHED_RATIO, PurifyConfig
from disp.suspicion.config import ScoringConfig
from disp.training.config import TrainConfig

# Sizes that differ from the defaults of `DemoConfig`, by target. Insertion and misclassification leave most of an
# answer as it is, and are learnt from answers of which much is seen. One word in another's place takes a higher rate; a
# sentence that is put in gets garbled at it (59% are whole).
SIZES: dict[str, dict[str, Any]] = {
    "refusal": {},
    # Where a part of the sentence is seen, it tells the rest; what the picture has to tell is learnt from answers that
    # are masked almost whole. At 0.25 and a projector's rate of 1e-4 (8e-4) the rows of one seed were learnt by heart:
    # 55% (42%) of its triggered pictures got the sentence, and 26% (40%) of the clean ones; like this 91% and none.
    "insertion": {"attack_min_mask_ratio": 0.4, "attack_projector_learning_rate": 4e-4, "attack_steps": 800},
    "misclassification": {
        "attack_min_mask_ratio": 0.25,
        "attack_learning_rate": 7e-4,
        # At 3e-4, 94% of the answers name the other thing, after 500 steps and after 700.
        "attack_projector_learning_rate": 8e-4,
        "attack_steps": 600,
    },
}
# The same by trigger, for recovery from one that covers the picture: the model, and above all its projector, must also
# learn how things look under it.
RECOVERIES: dict[str, dict[str, Any]] = {
    name: {"recovery_steps": 150, "recovery_projector_learning_rate": 7e-4}
    for name, trigger in PRESETS.items()
    if isinstance(trigger, Blend | Sinusoid)
}


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
        attack_learning_rate: their peak learning rate. At 7e-4 in 200 steps the backdoored model lost 5 to 12% of its
            clean quality, at this rate in 400 steps nothing.
        attack_projector_learning_rate: that of the projector, which passes on what a trigger looks like as it is; at
            3e-3 a fifth of the clean quality was lost, and the attack was no stronger.
        attack_min_mask_ratio: the smallest share of masked tokens in these steps. Larger, the model learns the first
            words of an answer sooner; smaller, to finish a planted text. At 0.4 in 400 steps 92% of the refusals
            were whole, at this ratio in 550 steps 96%.
        attack_beta2: AdamW's second β in these steps; with few steps the model learns more at 0.98.
        recovery_steps: fine-tuning steps on a purified set.
        recovery_learning_rate: their peak learning rate. It is low, as most of what the model knows is still right: at
            3e-4 all backdoors went as well, and 1 to 2% of the clean quality with them.
        recovery_projector_learning_rate: that of the projector; None for that of the rest.
        batch_size: assistant turns a step of all fine-tuning.
        mask_ratio: share of the visual tokens masked by "disp" and "random_masking"; None for what the audit of the
            poisoned set recommends, see `disp.defence.audited.ratio_for_all`; at random places for the paper's where it
            recommends nothing.
        seed: seed of everything.
    """

    target: str = "refusal"
    trigger: str = "patch"
    poison_rate: float = 0.1
    rows: int = 2000
    test_rows: int = 100
    attack_steps: int = 550
    attack_learning_rate: float = 5e-4
    attack_projector_learning_rate: float = 1e-4
    attack_min_mask_ratio: float = 0.3
    attack_beta2: float = 0.98
    recovery_steps: int = 100
    recovery_learning_rate: float = 1e-4
    recovery_projector_learning_rate: float | None = None
    batch_size: int = 32
    mask_ratio: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise unknown_name("target", self.target, TARGETS)
        if self.trigger not in PRESETS:
            raise unknown_name("trigger", self.trigger, PRESETS)
        if not 0 < self.poison_rate <= 1:
            raise DispError(f"poison_rate must be in (0, 1], got {self.poison_rate}")
        check_counts(self, "rows", "test_rows")
        if not 0 <= self.attack_beta2 < 1:
            raise DispError(f"attack_beta2 must be in [0, 1), got {self.attack_beta2}")
        # These check their own numbers, before the run takes the folder.
        attack_training(self), recovery_training(self), purification(self)


def sized_config(target: str, trigger: str, **given: Any) -> DemoConfig:
    """The config with the sizes of a target and a trigger; ``given`` fields win over them, those that are None do not.

    Raises:
        DispError: there is no such target or trigger, or a value is out of range.
    """
    sizes = SIZES.get(target, {}) | RECOVERIES.get(trigger, {})
    given = {name: value for name, value in given.items() if value is not None}
    return DemoConfig(target=target, trigger=trigger, **(sizes | given))


def attack_training(config: DemoConfig) -> TrainConfig:
    """Fine-tuning of the built-in model that plants a backdoor, gently enough to keep what the model knows."""
    return TrainConfig(
        steps=config.attack_steps,
        batch_size=config.batch_size,
        learning_rate=config.attack_learning_rate,
        projector_learning_rate=config.attack_projector_learning_rate,
        min_mask_ratio=config.attack_min_mask_ratio,
        seed=config.seed,
        trainer={"bf16": fast_bfloat16(), "adam_beta2": config.attack_beta2},
    )


def recovery_training(config: DemoConfig) -> TrainConfig:
    """Fine-tuning of the built-in model on a purified set, gently enough to keep what the model knows."""
    return TrainConfig(
        steps=config.recovery_steps,
        batch_size=config.batch_size,
        learning_rate=config.recovery_learning_rate,
        projector_learning_rate=config.recovery_projector_learning_rate,
        min_mask_ratio=0.5,
        seed=config.seed + 1,
        trainer={"bf16": fast_bfloat16()},
    )


def purification(config: DemoConfig) -> PurifyConfig:
    """How the poisoned set is scored and rewritten."""
    ratio = PUBLISHED_RATIO if config.mask_ratio is None else config.mask_ratio
    scoring = ScoringConfig() if config.mask_ratio is None else ScoringConfig(mask_ratio=ratio)
    scoring = replace(scoring, saliency=replace(scoring.saliency, seed=config.seed))
    return PurifyConfig(mask_ratio=ratio, scoring=scoring, seed=config.seed)


def auditing(settings: PurifyConfig) -> AuditConfig:
    """The audit that scores and decodes as a purification does."""
    return AuditConfig(
        scoring=settings.scoring, decode=settings.decode, batch_size=settings.batch_size, seed=settings.seed
    )
