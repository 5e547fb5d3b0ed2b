"""How well suspicious rows were found, where the planted attack is known; it decides nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from disp.auditing.result import Audit
from disp.auditing.statistics import area_under_curve
from disp.data.dataset import Dataset
from disp.errors import DispError
from disp.words import shortened


@dataclass(frozen=True)
class Truth:
    """Which rows of a dataset are poisoned.

    Attributes:
        poisoned: ids of the poisoned rows that are in it.
        missing: how many poisoned rows are not, such as rows that were set aside.
    """

    poisoned: frozenset[str]
    missing: int = 0


def read_truth(manifest: Path) -> frozenset[str]:
    """The ids of the samples that `disp poison` poisoned.

    Raises:
        DispError: the file is missing or no manifest.
    """
    try:
        rows = json.loads(manifest.read_text(encoding="utf-8"))["poisoned_rows"]
        return frozenset(row["id"] for row in rows)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, OSError):
            why = error.strerror or "it cannot be read"
        elif isinstance(error, KeyError | TypeError):
            why = "it names no poisoned rows"
        else:
            why = f"it is no JSON: {shortened(str(error))}"
        raise DispError(f"{manifest} is no manifest of `disp poison` ({why}); give its manifest.json") from None


def truth_about(dataset: Dataset, manifest: Path, *, quiet: bool = False) -> Truth:
    """What a manifest says about a dataset; on stderr, how many rows that it names are not there.

    Args:
        dataset: what is measured.
        manifest: of the attack on it.
        quiet: say nothing.

    Raises:
        DispError: the file is missing or no manifest, or of the rows that it names none is in the dataset.
    """
    named = read_truth(manifest)
    there = named.intersection(sample.id for sample in dataset.samples)
    if named and not there:
        raise DispError(
            f"{manifest}: no poisoned row that it names is in {dataset.path}; give the manifest of its own attack"
        )
    missing = len(named) - len(there)
    if missing and not quiet:
        told = f"{manifest}: {missing} of the {len(named)} poisoned rows that it names are not in {dataset.path}"
        print(f"{told}; they are not counted", file=sys.stderr)
    return Truth(there, missing)


def measured_against(truth: Truth, suspicion: Mapping[str, float], picked: Collection[str]) -> dict[str, float | None]:
    """How well poisoned rows were found; None for what is not defined.

    Args:
        truth: which they are.
        suspicion: of every row of the dataset, by id; higher for what is more suspicious.
        picked: ids of the rows that count as poisoned.

    Returns:
        "auroc" of the suspicion, "precision" and "recall" of what was picked, and how many rows are "poisoned" and
        "missing", as `Truth` has them.
    """
    hits = len(truth.poisoned.intersection(picked))
    return {
        "auroc": _auroc(truth, suspicion),
        "precision": hits / len(picked) if picked else None,
        "recall": hits / len(truth.poisoned) if truth.poisoned else None,
        "poisoned": len(truth.poisoned),
        "missing": truth.missing,
    }


def audit_against(truth: Truth, result: Audit) -> dict[str, float | None]:
    """How well an audit did: `measured_against` by its order, and the AUROC of suspicion alone, "auroc_suspicion"."""
    order = {key: -rank for key, rank in result.ranks.items()}
    return {**measured_against(truth, order, result.flagged), "auroc_suspicion": _auroc(truth, result.scores)}


def _auroc(truth: Truth, suspicion: Mapping[str, float]) -> float | None:
    labels = np.array([key in truth.poisoned for key in suspicion])
    area = area_under_curve(np.array(list(suspicion.values())), labels)
    return None if np.isnan(area) else area
