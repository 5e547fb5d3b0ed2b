"""The honest sets of OpenMoji scenes that the built-in model is fine-tuned on and measured with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from disp.attacks.targets import PRESETS as TARGETS
from disp.attacks.targets import Misclassification
from disp.data.dataset import Dataset
from disp.data.scene_dataset import write_scenes
from disp.experiments.settings import DemoConfig

# Share of fine-tuning scenes that show the concept to be swapped, so that most of them are described rightly.
SOURCE_SHARE = 0.6
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
