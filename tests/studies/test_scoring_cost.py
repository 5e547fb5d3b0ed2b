"""The study of what scoring costs: both ways score the same rows, and a screen saves passes."""

from disp.attacks.poison import poison
from disp.attacks.targets import PRESETS as TARGETS
from disp.attacks.triggers import PRESETS
from disp.data.loading import load_dataset
from disp.data.scene_dataset import write_scenes
from disp.models.builtin.family import FAMILY
from studies.scoring_cost import BACKWARD, TITLES, measure


def test_both_ways_are_measured_on_the_same_rows(tmp_path):
    write_scenes(tmp_path / "scenes", 8, 1)
    poison(load_dataset(tmp_path / "scenes"), tmp_path / "poisoned", PRESETS["patch"], TARGETS["refusal"], 0.5, 0)
    (tmp_path / "backdoored").symlink_to(FAMILY.folder)
    screened, tried = (dict(zip(TITLES, row, strict=True)) for row in measure(tmp_path, 2, 3, 2))
    assert (screened["sets tried"], tried["sets tried"]) == ("screened", "all")
    # One pass and four probes, then twelve candidates, or fewer; what is suspicious is narrowed besides.
    assert float(tried["honest"]) >= round(1 + 4 * BACKWARD + 12, 1) > float(screened["honest"])
