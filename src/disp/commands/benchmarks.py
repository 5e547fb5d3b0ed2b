"""Tasks for public benchmarks."""

from __future__ import annotations

from pathlib import Path

from disp.commands.options import ROWS, Data, Out, Rows, Seed, app
from disp.progress import progress_bar


@app.command
def tasks(data: Data, /, *, out: Out, attack: Path | None = None, seed: Seed = 0, rows: Rows = ROWS) -> None:
    """Write a held-out dataset as tasks for lmms-eval; see docs/benchmarks.md.

    Parameters
    ----------
    attack
        The manifest.json that `disp poison` wrote, for the two tasks that measure the ASR.
    """
    from disp.attacks.poison import load_attack
    from disp.benchmarks.export import write_tasks

    dataset = rows.load(data)
    with progress_bar("writing", len(dataset.samples)) as advance:
        names = write_tasks(dataset, out, attack=load_attack(attack) if attack else None, seed=seed, progress=advance)
    print(f"--include_path {out} --tasks {','.join(names)}")
