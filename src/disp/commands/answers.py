"""Answers of a model, and what they are worth."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disp.commands.answering import ASKED, GUARDING, SAMPLING, Asked, Guarding, Sampling
from disp.commands.defences import PARAMETERS, Parameters
from disp.commands.options import (
    ROWS,
    RUNTIME,
    BatchSize,
    Data,
    Limit,
    Model,
    OutFile,
    Rows,
    Runtime,
    Seed,
    app,
)
from disp.commands.sharing import SHARING, Sharing, bar_of
from disp.decoding.names import ProfileName
from disp.progress import progress_bar

if TYPE_CHECKING:
    from disp.data.sample import Query
    from disp.models.interface import MDLM
    from disp.planning.batch_size import Work
    from disp.purification.guard import GuardConfig


@app.command
def generate(
    model: Model,
    /,
    *,
    asked: Asked = ASKED,
    sampling: Sampling = SAMPLING,
    batch_size: BatchSize = 32,
    guarding: Guarding = GUARDING,
    sharing: Sharing = SHARING,
    seed: Seed = 0,
    rows: Rows = ROWS,
    runtime: Runtime = RUNTIME,
) -> None:
    """Answer one prompt about images, or every turn of a dataset."""
    asked.check()
    guarding.check(asked)

    from disp.data.sample import queries_of
    from disp.decoding.samplers import own_settings
    from disp.models.fingerprint import fingerprint
    from disp.scale.answers import generate_shared
    from disp.scale.beside import folder_beside, parts_of

    alone = "--guard" if guarding.guard else "--prompt" if asked.data is None else None
    runtime.check(model)
    workers, runtime = sharing.workers(model, runtime, alone=alone), sharing.runtime(runtime)
    samples = asked.samples(rows, quiet=not workers.leads)
    queries = queries_of(samples)
    work: Work = "scores" if guarding.guard else "answers"
    parts = parts_of(asked.out, workers)
    size = sharing.batch_size(batch_size, model, samples, runtime, workers, work=work, folder=parts)
    mdlm = runtime.load(model)
    config = own_settings(mdlm, **asdict(sampling))
    if guarding.guard:
        settings = guarding.config(decode=config, batch_size=size, seed=seed)
        _answer_under_masking(mdlm, queries, settings, asked.out)
        return
    run = {"weights": fingerprint(mdlm), "config": asdict(config), "seed": seed}
    with folder_beside(asked.out, workers, run, queries) as folder:
        with bar_of(workers)("answering", len(queries)) as advance:
            answers = generate_shared(
                mdlm,
                queries,
                config,
                seed=seed,
                batch_size=size,
                workers=workers,
                file=folder and folder / "answers.jsonl",
                progress=advance,
            )
        if asked.out is None:
            print(answers[0])
        elif workers.leads:
            _write(asked.out, queries, [{"answer": answer} for answer in answers])


def _answer_under_masking(mdlm: MDLM, queries: Sequence[Query], settings: GuardConfig, out: Path | None) -> None:
    from disp.purification.guard import guard

    with progress_bar("answering under masking", len(queries)) as advance:
        guarded = guard(mdlm, queries, settings, progress=advance)
    if out is None:
        print(guarded[0].answer)
        told = f"flagged: without masking the answer is {guarded[0].unmasked!r}"
        print(told if guarded[0].flagged else "not flagged: without masking the answer is the same", file=sys.stderr)
        return
    print(f"{sum(each.flagged for each in guarded)} of {len(guarded)} answers change under masking")
    _write(out, queries, [asdict(each) for each in guarded])


def _write(out: Path, queries: Sequence[Query], answers: Sequence[dict[str, Any]]) -> None:
    """One line a query."""
    from disp.files import write_jsonl

    lines = [
        {"id": query.sample_id, "turn": query.turn, "prompt": query.prompt, **answer}
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
    defence: str | None = None,
    parameters: Parameters = PARAMETERS,
    profile: ProfileName = "exact",
    out: OutFile = None,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    sharing: Sharing = SHARING,
    seed: Seed = 0,
    rows: Rows = ROWS,
    runtime: Runtime = RUNTIME,
) -> None:
    """Task quality on clean inputs and, with an attack's manifest, ASR and quality on triggered ones.

    Parameters
    ----------
    attack
        The manifest.json that `disp poison` wrote: the same trigger is put on these held-out images.
    defence
        Answer under a rival defence, such as gtm or random-mask; docs/baselines.md lists them.
    profile
        How much a step of decoding computes: exact, fast or fastest; docs/method.md says what each changes.
    out
        JSON file for the metrics.
    """
    import json
    from functools import partial

    from disp.attacks.poison import load_attack
    from disp.baselines.answering import answer_under
    from disp.data.sample import queries_of
    from disp.data.stored import check_output
    from disp.decoding.samplers import own_settings
    from disp.evaluation.evaluate import evaluate as run
    from disp.evaluation.evaluate import to_metrics
    from disp.files import sha256, write_json
    from disp.models.fingerprint import fingerprint
    from disp.scale.beside import folder_beside, parts_of

    runtime.check(model)
    workers, runtime = sharing.workers(model, runtime), sharing.runtime(runtime)
    parameters.answering(defence, batch_size=1, seed=seed)  # refuses a wrong name
    dataset = rows.load(data, quiet=not workers.leads)
    planted = load_attack(attack) if attack else None
    if out is not None:
        check_output(dataset, out, *([attack] if attack else []))
    samples = dataset.samples[:limit]
    parts = parts_of(out, workers)
    work: Work = "scores" if defence else "answers"
    size = sharing.batch_size(batch_size, model, samples, runtime, workers, work=work, folder=parts)
    rival = parameters.answering(defence, batch_size=size, seed=seed)
    mdlm = runtime.load(model)
    queries = queries_of(samples)
    total = len(queries) + (sum(bool(query.images) for query in queries) if planted else 0)
    decode = own_settings(mdlm, profile=profile)
    rival = rival and replace(rival, decode=decode)
    told = {
        "weights": fingerprint(mdlm),
        "decode": asdict(decode),
        "attack": attack and sha256(attack),
        "defence": rival and asdict(rival),
        "seed": seed,
    }
    with folder_beside(out, workers, told, queries) as folder:
        with bar_of(workers)("measuring", total) as advance:
            found = run(
                mdlm,
                samples,
                attack=planted,
                decode=decode,
                answer=partial(answer_under, config=rival) if rival else None,
                seed=seed,
                batch_size=size,
                workers=workers,
                folder=folder,
                progress=advance,
            )
        if workers.leads:
            metrics = to_metrics(found)
            if out:
                write_json(out, metrics)
            print(json.dumps(metrics, indent=2))
