"""Saliency as a run of its own, which goes on where it was stopped."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from disp.data.dataset import Dataset
from disp.data.sample import queries_of
from disp.data.stored import check_apart, identity
from disp.files import claim
from disp.locks import alone
from disp.models.fingerprint import fingerprint
from disp.models.interface import MDLM
from disp.progress import ProgressBar, no_progress
from disp.scale.workers import ALONE, Workers
from disp.suspicion.config import ScoringConfig
from disp.suspicion.scoring import score


@alone
def write_saliency(
    model: MDLM,
    dataset: Dataset,
    config: ScoringConfig,
    out: Path,
    *,
    limit: int | None = None,
    workers: Workers = ALONE,
    progress: ProgressBar = no_progress,
) -> Path:
    """How much each visual token matters to each answer, without the suspicion.

    Args:
        model: the MDLM.
        dataset: the answers that are given.
        config: its saliency estimator, its response slots and its batch size.
        out: folder of the run.
        limit: look at the first so many rows alone.
        workers: who does it; see `disp.scale`.
        progress: opened with a description and a total; see `disp.progress`.

    Returns:
        ``saliency.jsonl`` in ``out``, one line a turn.

    Raises:
        DispError: ``out`` holds another run, or is the data's own folder.
    """
    check_apart(dataset, out)
    samples = dataset.samples[:limit]
    run = {"weights": fingerprint(model), "config": asdict(config), **identity(dataset)}
    workers.wait_for(out / "run.json")
    claim(out / "run.json", run, "saliency", ignore=("batch_size",))
    file = out / "saliency.jsonl"
    with progress("saliency", len(queries_of(samples))) as advance:
        score(model, samples, config, file, counterfactual=False, workers=workers, progress=advance)
    return file
