"""The set that a rival defence leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from disp.data.dataset import Dataset
from disp.data.sample import Sample
from disp.data.saving import data_path, link_images, save_dataset


def saved(dataset: Dataset, samples: Sequence[Sample], out: Path) -> Dataset:
    """Write samples of a dataset to a run's folder, where they find its pictures."""
    path = data_path(dataset, out)
    save_dataset(samples, path, dataset.image_root, like=dataset)
    link_images(dataset, out)
    return replace(dataset, samples=tuple(samples), path=path)
