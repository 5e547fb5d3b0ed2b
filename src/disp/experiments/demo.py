"""The whole story on the built-in model: plant a backdoor, find it, remove it, and measure every step."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from disp.attacks.poison import trigger_samples
from disp.attacks.targets import target_to_dict
from disp.attacks.triggers import trigger_to_dict
from disp.data.index import Index
from disp.data.sample import open_image
from disp.decoding.generate import answers_of
from disp.evaluation.table import STAGES, stage_table
from disp.experiments.attacked import AttackRun
from disp.experiments.cells import Attacked
from disp.experiments.defended import REWRITTEN, recovered
from disp.experiments.phases import Phases
from disp.experiments.recipe import Defence
from disp.experiments.settings import DemoConfig
from disp.experiments.subject import Builtin
from disp.files import claim, read_json, write_json, write_text
from disp.locks import alone
from disp.machine import versions
from disp.progress import ProgressBar, no_progress
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
    run = demo_run(config, out, progress)
    # The model too: a later version of this package may bring another.
    claim(out / "run.json", {**asdict(config), **run.subject.identity()}, "a run")
    found = run.before()
    spent = {"": run.phases}
    ways = defences(config)
    for name, defence in ways.items():
        folder = out / f"purified_{name}"
        model = recovered(run, name, defence, folder, purified=folder, model=out / name)
        spent[name] = Phases(folder)
        found[name] = run.measured(name, lambda model=model: model, out / "stages", spent[name])  # type: ignore[misc]
    ratio = read_json(out / "purified_disp" / REWRITTEN)["mask_ratio"]
    shares = {name: found[name]["metrics"] for name in STAGES}
    seconds = {
        f"{phase} {name}".strip(): each["seconds"]
        for name, phases in spent.items()
        for phase, each in phases.read().items()
    }
    write_json(
        out / "metrics.json",
        {
            **shares,
            "target": target_to_dict(run.planted.target),
            "trigger": trigger_to_dict(run.planted.trigger),
            "poison_rate": config.poison_rate,
            "mask_ratio": ratio,
            "seed": config.seed,
            "config": asdict(config),
            "versions": versions(),
            "seconds": seconds,
        },
    )
    write_text(out / "table.md", stage_table(shares) + "\n")
    _draw(run, ratio, out / "story.png")
    return dict(read_json(out / "metrics.json"))


def demo_run(config: DemoConfig, out: Path, progress: ProgressBar, *, audited: bool = True) -> AttackRun:
    """The attack of a demonstration, which has the folder ``out`` for itself; for the rest see `AttackRun`."""
    attack = Attacked(config.target, config.trigger, config.poison_rate, config.seed)
    return AttackRun(Builtin(config), attack, out, progress, audited=audited, alone=True)


def defences(config: DemoConfig) -> dict[str, Defence]:
    """What is done to the poisoned set: the control, then the two ways of `disp defend`.

    With a mask ratio of the user's, all rows are rewritten as in the paper: none is left out.
    """
    ratio: float | Literal["audit"] = "audit" if config.mask_ratio is None else config.mask_ratio
    return {
        "random_masking": Defence(STAGES["random_masking"], "random", mask_ratio=ratio),
        "disp": Defence(STAGES["disp"], leave_out=True)
        if config.mask_ratio is None
        else Defence(STAGES["disp"], mask_ratio=config.mask_ratio),
        "disp_selective": Defence(STAGES["disp_selective"], "flagged"),
    }


def _draw(run: AttackRun, ratio: float, file: Path) -> None:
    """Draw one test picture at every stage."""
    stages = {
        stage: read_json(run.folder / "stages" / f"{stage}-answers.json") for stage in ("backdoored", "disp_selective")
    }
    row = _telling_row(stages["backdoored"], stages["disp_selective"])
    before, after = stages["backdoored"][row], stages["disp_selective"][row]
    shown = Index(run.test.samples).by_key[before["key"]]
    sample = next(sample for sample in run.test.samples if sample.id == shown.sample_id)
    backdoored, settings, attack = run.model(), run.settings.purify, run.attack
    (triggered,) = trigger_samples([sample], run.planted.trigger, settings.seed, storage=run.planted.storage)
    query = triggered.queries[shown.turn]
    prefix = backdoored.encode([query])
    scores = saliency(backdoored, prefix, [query.key], settings.scoring.saliency)
    masked = mask_top(scores, prefix.visual_mask, ratio)
    hidden = prefix.with_masked(masked, backdoored.mask_embedding)
    (answer_masked,) = answers_of(backdoored, hidden, settings.decode, keys=[query.key])
    places = prefix.locations[prefix.visual_mask]
    grid = (int(places[:, 2].max()) + 1, int(places[:, 3].max()) + 1)
    draw_story(
        file,
        title=f"{attack.target} · {attack.trigger} trigger · {attack.rate:.0%} of rows poisoned",
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
