"""The set that a rival defence leaves, and what it says of each row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from disp.data.dataset import Dataset
from disp.data.sample import Sample
from disp.data.saving import data_path, link_images, save_dataset
from disp.files import write_jsonl


def left(dataset: Dataset, samples: Sequence[Sample], out: Path) -> Dataset:
    """The dataset with other samples, as `save` writes it to a run's folder."""
    return replace(dataset, samples=tuple(samples), path=data_path(dataset, out))


def save(result: Dataset, dataset: Dataset, scores: Iterable[Mapping[str, Any]], out: Path) -> None:
    """Write what a defence made of a dataset to a run's folder, where it finds the pictures.

    Args:
        result: see `left`.
        dataset: the one that was defended.
        scores: one row a sample of ``dataset``, for ``scores.jsonl``.
        out: the run's folder.
    """
    save_dataset(result.samples, result.path, dataset.image_root, like=dataset)
    link_images(dataset, out)
    write_jsonl(out / "scores.jsonl", scores)
