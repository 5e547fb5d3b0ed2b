"""Settings that decide something are refused where they cannot be meant: NaN passes every comparison by."""

import importlib
import math
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import disp
from disp.auditing.config import AuditConfig, ExtensionConfig, ProofConfig, RatioConfig, ShownConfig
from disp.auditing.finder_config import CornersConfig, PatternsConfig, RecurrenceConfig, SentencesConfig, UnaskedConfig
from disp.baselines.bye import ByeConfig
from disp.defence.config import DefenceConfig
from disp.errors import DispError
from disp.purification.guard import GuardConfig
from disp.suspicion.config import ScoringConfig
from disp.training.config import TrainConfig

SOURCE = Path(disp.__file__).parent
# A seed is any number; the numbers of a speed measurement decide nothing.
FREE = {"seed"}
PASSED_BY = {"BenchConfig"}


def is_frozen(config):
    """Whether it is a frozen dataclass: configs of checkpoints are none."""
    return is_dataclass(config) and config.__dataclass_params__.frozen


def configs():
    """All frozen dataclasses called …Config that can be made without arguments, by name."""
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "Config" in text and "@dataclass(frozen=True)" in text:
            name = ".".join(("disp", *file.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
            for each in vars(importlib.import_module(name)).values():
                if isinstance(each, type) and each.__name__.endswith("Config") and is_frozen(each):
                    found[each.__name__] = each
    abstract = {"DecodeConfig", "StepConfig", "GridConfig", "BaselineConfig"}
    return {name: each for name, each in found.items() if name not in abstract | PASSED_BY}


CONFIGS = configs()
NUMBERS = [
    (name, field.name)
    for name, config in CONFIGS.items()
    for field in fields(config)
    if field.init and isinstance(getattr(config(), field.name), int | float) and field.name not in FREE
    if not isinstance(getattr(config(), field.name), bool)
]


def test_the_table_holds_the_settings_of_all_rooms():
    assert len(NUMBERS) > 150
    assert {"ScoringConfig", "AuditConfig", "CornersConfig", "DefenceConfig", "TrainConfig", "LladaConfig"} <= {
        name for name, _ in NUMBERS
    }


@pytest.mark.parametrize(("name", "field"), NUMBERS)
def test_no_number_may_be_nan_or_far_below_zero(name, field):
    for value in (math.nan, -1e6):
        with pytest.raises(DispError):
            CONFIGS[name](**{field: value})


@pytest.mark.parametrize(
    ("config", "wrong", "message"),
    [
        (ScoringConfig, {"mistake_weight": -3}, "mistake_weight must be at least 0, got -3"),
        (ScoringConfig, {"least_suspicion": math.inf}, "least_suspicion must be finite"),
        (ScoringConfig, {"gen_length": 0}, "gen_length must be at least 1, got 0"),
        (ScoringConfig, {"screen": -0.5}, "screen must be at least 0"),
        (ScoringConfig, {"candidates": 2.5}, "candidates must be a whole number, got 2.5"),
        (AuditConfig, {"set_aside_share": 1.5}, r"set_aside_share must be in \[0, 1\], got 1.5"),
        (ProofConfig, {"least_effect": 5}, r"least_effect must be in \[0, 1\], got 5"),
        (ProofConfig, {"control_pictures": 0}, "control_pictures must be at least 2, got 0"),
        (RecurrenceConfig, {"least_flagged": 0}, "least_flagged must be at least 1, got 0"),
        (RatioConfig, {"ratios": ()}, "ratios must be shares"),
        (RatioConfig, {"ratios": (0.2, 0.1)}, "in growing order"),
        (ExtensionConfig, {"ratios": (2.0,)}, "ratios must be shares"),
        (ExtensionConfig, {"ratios": (0.1, math.nan)}, "ratios must be shares"),
        (PatternsConfig, {"gains": (0.0, 2.0)}, "gains must be"),
        (CornersConfig, {"most_accidents": 2}, "most_accidents must be in"),
        (SentencesConfig, {"mask_ratio": 0}, r"mask_ratio must be in \(0, 1\], got 0"),
        (UnaskedConfig, {"honest_area": 1.1}, "honest_area must be in"),
        (ShownConfig, {"flagged": -1}, "flagged must be at least 0, got -1"),
        (DefenceConfig, {"probes": -1}, "probes must be at least 1, got -1"),
        (DefenceConfig, {"profile": "quick"}, "unknown profile 'quick'"),
        (DefenceConfig, {"substitute": "noise"}, "unknown substitute of a masked token 'noise'"),
        (TrainConfig, {"warmup_steps": -5}, "warmup_steps must be at least 0, got -5"),
        (TrainConfig, {"save_every": -3}, "save_every must be at least 0, got -3"),
        (ByeConfig, {"least_separation": math.nan}, "least_separation must be at least 0, got nan"),
        (GuardConfig, {"rounding": "near"}, "unknown rounding 'near'"),
    ],
)
def test_what_cannot_be_meant_is_named(config, wrong, message):
    with pytest.raises(DispError, match=message):
        config(**wrong)


@pytest.mark.parametrize(
    ("config", "given"),
    [
        (ScoringConfig, {"screen": None, "gen_length": None, "mistake_weight": 0}),
        (AuditConfig, {"text_rows_share": 1.0, "set_aside_share": 0}),
        (PatternsConfig, {"alpha": math.inf}),
        (ShownConfig, {"flagged": 0}),
        (DefenceConfig, {"under_patterns": 0}),
        (TrainConfig, {"save_every": None, "warmup_steps": 0}),
    ],
)
def test_the_ends_of_what_may_be_given_are_taken(config, given):
    assert config(**given)
