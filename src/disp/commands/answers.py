"""Answers of a model, and what they are worth."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from disp.commands.options import ROWS, RUNTIME, Data, Limit, Model, OutFile, Rows, Runtime, Seed, Several, app
from disp.errors import DispError
from disp.progress import progress_bar


@app.command
def generate(
    model: Model,
    /,
    *,
    prompt: str | None = None,
    image: Annotated[list[Path] | None, Several] = None,
    data: Path | None = None,
    out: OutFile = None,
    steps: int | None = None,
    block_length: int | None = None,
    remasking: Literal["low_confidence", "random"] | None = None,
    temperature: float | None = None,
    threshold: float | None = None,
    batch_size: int = 32,
    guard: Annotated[bool, Parameter(negative=())] = False,
    mask_ratio: float | None = None,
    seed: Seed = 0,
    rows: Rows = ROWS,
    runtime: Runtime = RUNTIME,
) -> None:
    """Answer one prompt about images, or every turn of a dataset.

    Parameters
    ----------
    prompt
        What to ask.
    image
        The image or images that the prompt is about.
    data
        A dataset to answer instead; needs --out.
    out
        JSONL file for the dataset's answers.
    steps
        Denoising steps.
    block_length
        Length of the blocks decoded one after the other.
    remasking
        Which predictions stay masked.
    temperature
        0 for greedy decoding.
    threshold
        Confidence at which a token is committed early.
    guard
        Answer with the most salient visual tokens masked, and flag inputs whose answer changes with that.
    mask_ratio
        Guard: share of the visual tokens that is masked, 0.06 by default.
    """
    from disp.data.sample import Query, queries_of
    from disp.decoding.generate import generate as run
    from disp.decoding.samplers import own_settings
    from disp.files import write_jsonl

    if (prompt is None) == (data is None):
        raise DispError("give either --prompt (with --image) or --data (with --out)")
    if data is not None and out is None:
        raise DispError("--data needs --out, the JSONL file for the answers")
    if data is not None and image:
        raise DispError("--image belongs to --prompt; a dataset names its own images")
    if guard and data is None and not image:
        raise DispError("--guard masks visual tokens; give an --image")
    if mask_ratio is not None and not guard:
        raise DispError("--mask-ratio is for --guard; without it nothing is masked")
    queries = [Query("prompt", 0, tuple(image or ()), (), prompt)] if prompt is not None else []
    if data is not None:
        queries = queries_of(rows.load(data).samples)
    mdlm = runtime.load(model)
    config = own_settings(
        mdlm,
        steps=steps,
        block_length=block_length,
        remasking=remasking,
        temperature=temperature,
        threshold=threshold,
    )
    if guard:
        from disp.purification.guard import GuardConfig
        from disp.purification.guard import guard as run_guarded

        settings = GuardConfig(decode=config, batch_size=batch_size, seed=seed)
        if mask_ratio is not None:
            settings = replace(settings, mask_ratio=mask_ratio)
        with progress_bar("answering under masking", len(queries)) as advance:
            guarded = run_guarded(mdlm, queries, settings, progress=advance)
        lines = [
            {"id": query.sample_id, "turn": query.turn, "prompt": query.prompt, **asdict(each)}
            for query, each in zip(queries, guarded, strict=True)
        ]
        if out is None:
            print(guarded[0].answer)
            if guarded[0].flagged:
                print(f"flagged: without masking the answer is {guarded[0].unmasked!r}", file=sys.stderr)
            return
        print(f"{sum(each.flagged for each in guarded)} of {len(guarded)} answers change under masking")
    else:
        with progress_bar("answering", len(queries)) as advance:
            answers = run(mdlm, queries, config, seed=seed, batch_size=batch_size, progress=advance)
        if out is None:
            print(answers[0])
            return
        lines = [
            {"id": query.sample_id, "turn": query.turn, "prompt": query.prompt, "answer": answer}
            for query, answer in zip(queries, answers, strict=True)
        ]
    write_jsonl(out, lines)
    print(f"{len(lines)} answers in {out}")


@app.command
def evaluate(
    model: Model,
    data: Data,
    /,
    *,
    attack: Path | None = None,
    out: OutFile = None,
    limit: Limit = None,
    batch_size: int = 32,
    seed: Seed = 0,
    rows: Rows = ROWS,
    runtime: Runtime = RUNTIME,
) -> None:
    """Task quality on clean inputs and, with an attack's manifest, ASR and quality on triggered ones.

    Parameters
    ----------
    attack
        The manifest.json that `disp poison` wrote: the same trigger is put on these held-out images.
    out
        JSON file for the metrics.
    """
    import json

    from disp.attacks.poison import load_attack
    from disp.data.sample import queries_of
    from disp.evaluation.evaluate import evaluate as run
    from disp.evaluation.evaluate import to_metrics
    from disp.files import write_json

    samples = rows.load(data).samples[:limit]
    planted = load_attack(attack) if attack else None
    mdlm = runtime.load(model)
    queries = queries_of(samples)
    total = len(queries) + (sum(bool(query.images) for query in queries) if planted else 0)
    with progress_bar("measuring", total) as advance:
        found = run(
            mdlm,
            samples,
            attack=planted,
            seed=seed,
            batch_size=batch_size,
            progress=advance,
        )
    metrics = to_metrics(found)
    if out:
        write_json(out, metrics)
    print(json.dumps(metrics, indent=2))
