"""Which share of the visual tokens the demonstration masks."""

import pytest

from disp.experiments.attacked import AttackRun
from disp.experiments.defended import purify_config
from disp.experiments.demo import defences, demo_run
from disp.experiments.settings import DemoConfig, attack_training, auditing, purification, recovery_training
from disp.files import write_json
from disp.models.loading import load_model
from disp.progress import no_progress


@pytest.fixture
def ratio(tmp_path, monkeypatch):
    monkeypatch.setattr(AttackRun, "model", lambda self: load_model("builtin"))

    def masked(config: DemoConfig, choice: dict | None) -> float:
        """The ratio of random masking where an audit chose this."""
        write_json(tmp_path / "audit" / "audit.json", {"mask_ratio": choice})
        return purify_config(demo_run(config, tmp_path, no_progress), defences(config)["random_masking"]).mask_ratio

    return masked


def test_the_audit_chooses_the_ratio_unless_one_is_given(ratio):
    assert ratio(DemoConfig(), {"ratio": 0.09}) == 0.09
    assert ratio(DemoConfig(mask_ratio=0.02), {"ratio": 0.09}) == 0.02


def test_every_draw_goes_with_the_seed():
    config = DemoConfig(seed=5)
    purifying = purification(config)
    assert (purifying.seed, purifying.scoring.saliency.seed) == (5, 5)
    assert (attack_training(config).seed, recovery_training(config).seed) == (5, 6)
    looking = auditing(purifying)
    assert (looking.seed, looking.scoring.saliency.seed) == (5, 5)


def test_without_a_choice_the_papers_ratio_is_taken(ratio):
    assert ratio(DemoConfig(), None) == 0.3
    assert ratio(DemoConfig(mask_ratio=0.02), None) == 0.02
