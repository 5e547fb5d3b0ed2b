"""Which share of the visual tokens the demonstration masks."""

from disp.auditing.mask_ratio import RatioChoice
from disp.experiments.settings import DemoConfig, purification, with_chosen_ratio

CHOICE = RatioChoice(0.09, (0.06, 0.09), (0.4, 1.0), (0.9, 0.9))


def ratio(config: DemoConfig, choice: RatioChoice | None) -> float:
    return with_chosen_ratio(config, purification(config), choice).mask_ratio


def test_the_audit_chooses_the_ratio_unless_one_is_given():
    assert ratio(DemoConfig(), CHOICE) == 0.09
    assert ratio(DemoConfig(mask_ratio=0.02), CHOICE) == 0.02


def test_without_a_choice_the_papers_ratio_is_taken():
    assert ratio(DemoConfig(), None) == 0.3
    assert ratio(DemoConfig(mask_ratio=0.02), None) == 0.02
