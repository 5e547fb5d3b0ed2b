"""The whole story on the built-in model: plant a backdoor, find it, remove it, and measure every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from disp.attacks.poison import Attack, load_attack, trigger_samples
from disp.data.dataset import Dataset
from disp.data.index import Index
from disp.data.sample import Sample, open_image
from disp.decoding.generate import answers_of
from disp.defence.defend import purify_flagged, recovery_samples
from disp.evaluation.table import stage_table
from disp.experiments.precision import half_precision, load_float32
from disp.experiments.run import MODES, STAGES, Run, read_json
from disp.experiments.settings import (
    DemoConfig,
    attack_training,
    auditing,
    purification,
    recovery_training,
    with_chosen_ratio,
)
from disp.files import claim, write_json, write_text
from disp.locks import alone
from disp.models.interface import MDLM
from disp.progress import ProgressBar, no_progress
from disp.purification.config import PurifyConfig
from disp.purification.purify import purify
from disp.report.picture import draw_story
from disp.suspicion.masking import mask_top
from disp.suspicion.saliency import saliency


@alone
def demo(config: DemoConfig, out: Path, *, progress: ProgressBar = no_progress) -> dict[str, Any]:
    """Plant a backdoor in the built-in model, remove it three ways, and measure all five models.

    ``out`` receives the data, the models, the evidence, ``metrics.json``, ``table.md``, ``story.png`` and in ``audit/``
    what an audit of the poisoned set finds, with ``report.html``. Finished phases are not repeated when the run is
    started again.

    Args:
        config: see `DemoConfig`.
        out: folder of the run.
        progress: opened with a description and a total for each long step; see `disp.progress`.

    Returns:
        What ``metrics.json`` holds.
    """
    run = Run(config, out, progress)
    claim(out / "run.json", asdict(config), "a run")
    tuning, test = run.data()
    poisoned = run.poisoned(tuning)
    attack = load_attack(out / "poisoned" / "manifest.json")
    builtin = load_float32()

    run.measure("clean", lambda: builtin, test, attack)
    planting = attack_training(config)
    model = run.trained("backdoored", load_float32, lambda: poisoned.samples, planting)
    run.measure("backdoored", lambda: model, test, attack)

    recovery = recovery_training(config)
    settings = purification(config)
    evidence = run.scored(model, poisoned, settings)
    looking = auditing(settings)
    found = run.audited(model, poisoned, looking, evidence)
    settings = with_chosen_ratio(config, settings, found.ratio)
    for stage in MODES:

        def purified(stage: str = stage) -> Sequence[Sample]:
            folder, bars = out / f"purified_{stage}", run.bars(stage)
            if stage == "disp_selective":
                # What is rewritten selectively is what an audit flags, as in `disp defend`.
                with run.phase(f"purify {stage}"), half_precision():
                    cleaned = purify_flagged(model, poisoned, found, looking, folder, progress=bars)
                    return recovery_samples(cleaned, found, settings.seed)
            mode = replace(settings, mode=MODES[stage])
            with run.phase(f"purify {stage}"), half_precision():
                return purify(model, poisoned, mode, folder, evidence=evidence, progress=bars).dataset.samples

        recovered = run.trained(stage, lambda: load_float32(out / "backdoored"), purified, recovery)
        run.measure(stage, lambda recovered=recovered: recovered, test, attack)  # type: ignore[misc]
    write_json(out / "metrics.json", run.metrics(settings.mask_ratio))
    metrics = read_json(out / "metrics.json")
    write_text(out / "table.md", stage_table({stage: metrics[stage] for stage in STAGES}) + "\n")
    _draw(run, model, load_float32(out / "disp_selective"), test, attack, settings, out / "story.png")
    return metrics


def _draw(
    run: Run,
    backdoored: MDLM,
    recovered: MDLM,
    test: Dataset,
    attack: Attack,
    settings: PurifyConfig,
    file: Path,
) -> None:
    """Draw one test picture at every stage."""
    stages = {
        stage: read_json(run.out / "stages" / f"{stage}-answers.json") for stage in ("backdoored", "disp_selective")
    }
    row = _telling_row(stages["backdoored"], stages["disp_selective"])
    before, after = stages["backdoored"][row], stages["disp_selective"][row]
    shown = Index(test.samples).by_key[before["key"]]
    sample = next(sample for sample in test.samples if sample.id == shown.sample_id)
    (triggered,) = trigger_samples([sample], attack.trigger, settings.seed)
    query = triggered.queries[shown.turn]
    prefix = backdoored.encode([query])
    scores = saliency(backdoored, prefix, [query.key], settings.scoring.saliency)
    masked = mask_top(scores, prefix.visual_mask, settings.mask_ratio)
    hidden = prefix.with_masked(masked, backdoored.mask_embedding)
    (answer_masked,) = answers_of(backdoored, hidden, settings.decode, keys=[query.key])
    places = prefix.locations[prefix.visual_mask]
    grid = (int(places[:, 2].max()) + 1, int(places[:, 3].max()) + 1)
    draw_story(
        file,
        title=f"{run.config.target} · {run.config.trigger} trigger · {run.config.poison_rate:.0%} of rows poisoned",
        clean=open_image(sample.images[0]),
        triggered=open_image(triggered.images[0]),
        saliency=scores[prefix.visual_mask].reshape(grid).cpu().numpy(),
        masked=masked[prefix.visual_mask].reshape(grid).cpu().numpy(),
        question=query.prompt.replace("<image>", "").strip(),
        answer_clean=before["clean_answer"],
        answer_triggered=before["triggered_answer"],
        answer_masked=answer_masked,
        answer_recovered=after["triggered_answer"],
    )


def _telling_row(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> int:
    """The first row where the attack worked and the recovered model answers right; otherwise the first row."""
    for index, (attacked, mended) in enumerate(zip(before, after, strict=True)):
        if attacked.get("hit_with_trigger") and mended["triggered_answer"] == mended["reference"]:
            return index
    return 0
