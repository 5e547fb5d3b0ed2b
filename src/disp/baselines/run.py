"""Running a rival defence on a fine-tuning set."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from disp.auditing.truth import measured_against, truth_about
from disp.baselines.answering import answer_anew
from disp.baselines.config import BaselineConfig, Defended
from disp.baselines.filtering import filtered
from disp.baselines.interface import Answering, Filter
from disp.baselines.table import DEFENCES
from disp.data.dataset import Dataset
from disp.data.stored import check_apart, identity
from disp.decoding.samplers import own_settings
from disp.errors import DispError
from disp.files import claim, write_json
from disp.locks import alone
from disp.models.fingerprint import fingerprint
from disp.models.interface import MDLM
from disp.progress import ProgressBar, no_progress
from disp.scale.workers import ALONE, Workers


@alone
def run_baseline(
    model: MDLM,
    dataset: Dataset,
    config: BaselineConfig,
    out: Path,
    *,
    truth: Path | None = None,
    workers: Workers = ALONE,
    progress: ProgressBar = no_progress,
) -> Defended:
    """Run a rival defence on a fine-tuning set and write what it leaves, in the set's own format.

    ``out`` receives ``data.json`` or ``data.jsonl`` and a link ``images`` to the input's images, ``scores.jsonl`` with
    one row a sample (its score and whether it was dropped, or its old and new answers), and ``baseline.json`` with the
    counts. A killed run goes on where it stopped.

    Args:
        model: the model that was fine-tuned on the set; for "likelihood" the trusted one from before.
        dataset: the fine-tuning set.
        config: see `BaselineConfig`.
        out: folder of the run.
        truth: the manifest of a planted attack, to measure a filter; it decides nothing.
        workers: who measures or answers; see `disp.scale`. Of several processes the one that leads writes the set.
        progress: opened with a description and a total for each long step; see `disp.progress`.

    Raises:
        DispError: ``out`` holds a run with another model, configuration or data, or is the data's own folder; the
            model does not show what the defence needs; a parameter is missing; no row is left; too few rows can be
            measured; or ``truth`` is no manifest of an attack on the set, or is given for a defence that drops nothing.
    """
    check_apart(dataset, out)
    defence = DEFENCES[config.defence]
    defence.check(config.parameters, dataset)
    if truth is not None and not isinstance(defence, Filter):
        raise DispError(f"a manifest measures filters (--truth), and {defence.name} drops no row; leave it out")
    known = None if truth is None else truth_about(dataset, truth)
    if isinstance(defence, Answering):
        config = replace(config, decode=config.decode or own_settings(model, profile="exact"))
    workers.wait_for(out / "run.json")
    claim(
        out / "run.json",
        {"weights": fingerprint(model), "config": asdict(config), **identity(dataset)},
        f"a run of {defence.name}",
        ignore=("batch_size",),
    )
    found = (
        filtered(model, dataset, defence, config, out, workers=workers, progress=progress)
        if isinstance(defence, Filter)
        else answer_anew(model, dataset, config, out, workers=workers, progress=progress)
    )
    if known is not None:
        least = min(found.scores.values()) - 1  # what could not be measured is suspected least
        suspicion = {sample.id: found.scores.get(sample.id, least) for sample in dataset.samples}
        found = replace(found, truth=measured_against(known, suspicion, found.dropped))
    if not workers.leads:
        return found
    write_json(
        out / "baseline.json",
        {
            "config": asdict(config),
            "samples": len(dataset.samples),
            "measured": len(found.scores),
            "dropped": list(found.dropped),
            "rewritten": len(found.rewritten),
            "note": found.note,
            "truth": dict(found.truth) or None,
            "set_aside": [asdict(problem) for problem in dataset.problems],
        },
    )
    return found
