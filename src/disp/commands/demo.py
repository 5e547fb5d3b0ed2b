"""The demonstration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from disp.commands.options import Out, Seed, app
from disp.progress import progress_bar


@app.command
def demo(
    *,
    out: Out = Path("runs/demo"),
    target: Literal["refusal", "insertion", "misclassification", "all"] = "refusal",
    trigger: str = "patch",
    poison_rate: float = 0.1,
    mask_ratio: float | None = None,
    recovery_steps: int | None = None,
    test_rows: int | None = None,
    seed: Seed = 0,
) -> None:
    """Plant a backdoor in the built-in model, find it, remove it, and measure every step.

    Parameters
    ----------
    target
        What the attacker wants said, or all three one after the other.
    trigger
        A preset, such as patch, patch-random, object, badnets, ring, blended or sig; a wrong name lists them all.
    poison_rate
        Share of the fine-tuning rows that are poisoned.
    mask_ratio
        Share of the visual tokens masked when every answer is rewritten; the audit chooses it if not given.
    recovery_steps
        Fine-tuning steps on each purified set: 150 if not given, 100 for a refusal by a trigger that covers little.
    test_rows
        Held-out pictures that every model is measured on, 100 by default; the interval of 0 in 200 ends below 2%.
    """
    from disp.data.scenes import attribution
    from disp.evaluation.table import STAGES, print_stage_table
    from disp.experiments.demo import demo as run
    from disp.experiments.settings import SIZES, sized_config

    print(attribution(), file=sys.stderr)
    given = {"mask_ratio": mask_ratio, "recovery_steps": recovery_steps, "test_rows": test_rows}
    for name in SIZES if target == "all" else (target,):
        config = sized_config(name, trigger, poison_rate=poison_rate, seed=seed, **given)
        folder = out / f"{name}-{trigger}"
        metrics = run(config, folder, progress=progress_bar)
        print(f"\n{name}, {trigger} trigger, {poison_rate:.0%} of the rows poisoned")
        print_stage_table({stage: metrics[stage] for stage in STAGES})
        print(f"picture: {folder / 'story.png'}   metrics: {folder / 'metrics.json'}")
        print(f"audit of the poisoned set: {folder / 'audit' / 'report.html'}")
