"""How well an audit did, where the planted attack is known; it decides nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from disp.auditing.result import Audit
from disp.auditing.statistics import area_under_curve
from disp.errors import DispError
from disp.words import shortened


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


def compared_with_truth(result: Audit, poisoned: frozenset[str]) -> dict[str, float | None]:
    """AUROC of the audit's order and of suspicion alone, precision and recall; None for what is not defined."""
    ids = list(result.scores)
    hits = len(poisoned & set(result.flagged))
    truth, ranks = np.array([key in poisoned for key in ids]), result.ranks
    auroc = {
        "auroc": area_under_curve(np.array([-ranks[key] for key in ids]), truth),
        "auroc_suspicion": area_under_curve(np.array([result.scores[key] for key in ids]), truth),
    }
    return {
        **{name: None if np.isnan(value) else value for name, value in auroc.items()},
        "precision": hits / len(result.flagged) if result.flagged else None,
        "recall": hits / len(poisoned) if poisoned else None,
        "poisoned": len(poisoned),
    }
