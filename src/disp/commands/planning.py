"""What a run will take, and tasks for public benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from disp.commands.options import ROWS, Data, Model, Out, Rows, Seed, app
from disp.commands.training import PLANNED_TRAINING, PlannedTraining
from disp.progress import progress_bar
from disp.suspicion.config import SCORING_PROBES, SaliencyConfig, ScoringConfig

BITS: dict[str | None, Literal[4, 8] | None] = {None: None, "4bit": 4, "8bit": 8}


@app.command
def plan(
    model: Model,
    data: Data,
    /,
    *,
    mode: Literal["selective", "all", "random"] = "selective",
    mask_ratio: float = ScoringConfig.mask_ratio,
    candidates: int = ScoringConfig.candidates,
    probes: int = SCORING_PROBES,
    batch_size: int = 32,
    training: PlannedTraining = PLANNED_TRAINING,
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    quantization: Literal["4bit", "8bit"] | None = None,
    gen_length: int | None = None,
    attack: Annotated[bool, Parameter(negative=())] = False,
    rows: Rows = ROWS,
) -> None:
    """Memory and passes that audit, purification, training and evaluation will take; loads no weights.

    Parameters
    ----------
    mode
        Which answers are rewritten.
    mask_ratio
        Share of the visual tokens that are masked.
    candidates
        Salient tokens that are masked one at a time.
    probes
        Hutchinson probes.
    batch_size
        Assistant turns a pass.
    dtype
        Of weights and activations.
    quantization
        Of the language model's weights, as with the other commands.
    gen_length
        Response slots; the model's own if not given.
    attack
        Whether the evaluation measures an attack too.
    """
    from disp.planning.plan import PlanSettings, make_plan
    from disp.purification.config import PurifyConfig

    purify = PurifyConfig(
        mode=mode,
        mask_ratio=mask_ratio,
        scoring=ScoringConfig(
            mask_ratio=mask_ratio,
            candidates=candidates,
            saliency=SaliencyConfig(probes=probes),
            batch_size=batch_size,
        ),
        batch_size=batch_size,
    )
    settings = PlanSettings(
        dtype=dtype,
        bits=BITS[quantization],
        purify=purify,
        train=training.config(),
        evaluation_batch_size=batch_size,
        attacked=attack,
        gen_length=gen_length,
    )
    print(make_plan(model, rows.load(data, pictures=False), settings).to_text())


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
