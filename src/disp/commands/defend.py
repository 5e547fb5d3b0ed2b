"""The defender's path: saliency, purification, audit, and all of it in one run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from disp.commands import exit_codes
from disp.commands.options import (
    ROWS,
    RUNTIME,
    BatchSize,
    Data,
    Flag,
    Limit,
    Model,
    Out,
    Rows,
    Runtime,
    Seed,
    app,
    list_problems,
)
from disp.commands.scoring import AUDITING, ESTIMATING, REWRITING, Auditing, Estimating, Rewriting
from disp.commands.sharing import SHARING, Sharing, bar_of
from disp.commands.training import RECOVERY, Recovery
from disp.commands.treating import TREATING, Treating, what_was_done, why_left_out
from disp.decoding.names import ProfileName
from disp.purification.names import Preset, Rewrite


@app.command
def saliency(
    model: Model,
    data: Data,
    /,
    *,
    out: Out,
    estimating: Estimating = ESTIMATING,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    sharing: Sharing = SHARING,
    rows: Rows = ROWS,
    runtime: Runtime = RUNTIME,
) -> None:
    """How much each visual token matters to each answer, as saliency.jsonl."""
    from disp.suspicion.run import write_saliency

    estimating.config(seed, batch_size=1)  # refuses wrong values
    runtime.check(model)
    workers, runtime = sharing.workers(model, runtime), sharing.runtime(runtime)
    dataset = rows.load(data, quiet=not workers.leads)  # first: a wrong path is said before weights are loaded
    size = sharing.batch_size(batch_size, model, dataset.samples[:limit], runtime, workers, work="scores", folder=out)
    config, mdlm = estimating.config(seed, size), runtime.load(model)
    file = write_saliency(mdlm, dataset, config, out, limit=limit, workers=workers, progress=bar_of(workers))
    if workers.leads:
        print(f"saliency in {file}")


@app.command
def purify(
    model: Model,
    data: Data,
    /,
    *,
    out: Out,
    rewriting: Rewriting = REWRITING,
    treating: Treating = TREATING,
    seed: Seed = 0,
    sharing: Sharing = SHARING,
    rows: Rows = ROWS,
    runtime: Runtime = RUNTIME,
) -> None:
    """Let the model rewrite its training answers with salient visual tokens masked."""
    from disp.purification.purify import purify as run

    treating.check()
    runtime.check(model)
    workers, runtime = sharing.workers(model, runtime), sharing.runtime(runtime)
    # First: a wrong path is said before weights are loaded.
    dataset = rows.load(data, pictured=True, quiet=not workers.leads)
    treatment = treating.treatment(dataset, rows)
    size = sharing.batch_size(rewriting.batch_size, model, dataset.samples, runtime, workers, work="scores", folder=out)
    mdlm = runtime.load(model)
    config = rewriting.config(mdlm, seed, size)
    result = run(mdlm, dataset, config, out, treatment=treatment, workers=workers, progress=bar_of(workers))
    if not workers.leads:
        return
    list_problems(result.untrusted)
    print(f"{what_was_done(treatment, result, len(dataset.samples))}; purified set in {result.dataset.path}")


@app.command
def audit(
    model: Model,
    data: Data,
    /,
    *,
    out: Out,
    truth: Path | None = None,
    fail_on: Literal["suspicious", "poisoned", "never"] = "suspicious",
    json: Flag = False,
    seed: Seed = 0,
    auditing: Auditing = AUDITING,
    sharing: Sharing = SHARING,
    rows: Rows = ROWS,
    runtime: Runtime = RUNTIME,
) -> None:
    """Is this dataset poisoned, by what, and where is the trigger? Needs no labels and no clean data.

    Exit code 0: no evidence. 1: suspicious or poisoned. 2: could not decide, or an error.

    Parameters
    ----------
    model
        The model that was fine-tuned on the data.
    truth
        The manifest.json of a planted attack, to measure the audit itself; it decides nothing.
    fail_on
        The mildest verdict that gives exit code 1.
    json
        Print audit.json instead of the summary.
    """
    from json import dumps

    from disp.auditing.audit import audit as run
    from disp.errors import Undecided
    from disp.report.html import write_report

    auditing.config(seed, batch_size=1)  # refuses wrong values
    runtime.check(model)
    workers, runtime = sharing.workers(model, runtime), sharing.runtime(runtime)
    dataset = rows.load(data, quiet=not workers.leads)  # first: a wrong path is said before weights are loaded
    size = sharing.batch_size(auditing.batch_size, model, dataset.samples, runtime, workers, work="scores", folder=out)
    mdlm = runtime.load(model)
    try:
        config = auditing.config(seed, size, text_rows=rows.allow_text_rows)
        found = run(mdlm, dataset, config, out, truth=truth, name=model, workers=workers, progress=bar_of(workers))
    except Undecided as error:
        if json and workers.leads:
            print(dumps({"verdict": "could not decide", "reasons": [str(error)]}))
        raise
    if not workers.leads:  # the verdict is the first process's to tell
        return
    report = write_report(out)
    if json:
        print((out / "audit.json").read_text(encoding="utf-8"))
    else:
        print("\n".join((f"Verdict: {found.verdict}", *found.reasons, f"Report: {report}")))
    if code := exit_codes.of_audit(found.verdict, fail_on):
        sys.exit(code)


@app.command
def defend(
    model: Model,
    data: Data,
    /,
    *,
    out: Out,
    start: str | None = None,
    rounds: int = 1,
    rewrite: Rewrite = "flagged",
    preset: Preset | None = None,
    profile: ProfileName = "exact",
    drop_masked: Flag = False,
    recovery: Recovery = RECOVERY,
    truth: Path | None = None,
    treating: Treating = TREATING,
    seed: Seed = 0,
    auditing: Auditing = AUDITING,
    sharing: Sharing = SHARING,
    rows: Rows = ROWS,
    runtime: Runtime = RUNTIME,
) -> None:
    """Audit, purify, train and verify in one run that goes on where it was stopped.

    Exit code 0: no evidence, or none left. 1: the recovered model still shows evidence, or still says a phrase that was
    found. 2: could not decide, or an error.

    Parameters
    ----------
    model
        The model that was fine-tuned on the data.
    start
        The model to fine-tune on the purified set, such as the checkpoint before fine-tuning; the given one if none.
    rounds
        Rounds at most; another one follows while evidence is left.
    rewrite
        What is rewritten: the rows that the audit flags, or all rows, with as few tokens masked as the audit allows.
    preset
        Rewrite every row and recover as the scripts of DiSP's authors do ("published"), not what the audit flags.
    profile
        How much a step of decoding new answers computes: exact, fast or fastest; docs/method.md says what each changes.
    drop_masked
        Leave masked visual tokens out of the sequence while answers are rewritten.
    truth
        The manifest.json of a planted attack, to measure the audit itself; it decides nothing.
    """
    from disp.defence.config import RECIPES, DefenceConfig
    from disp.defence.defend import defend as run
    from disp.errors import DispError
    from disp.processes import as_if_alone
    from disp.report.ending import recovery_lines, warnings
    from disp.report.html import write_report

    with as_if_alone():  # one process trains, with all rows of a step
        training = recovery.config(seed, recipe=None if preset is None else RECIPES[preset])
    treating.check()
    if sharing.engine == "ray":
        raise DispError(
            "disp defend is for processes that torchrun or Slurm starts: actors of Ray would keep the model that is "
            "defended; run disp audit, purify and train one after the other, with --engine ray"
        )
    auditing.config(seed, batch_size=1)  # refuses wrong values
    for each in (model, start):
        if each is not None:
            runtime.check(each)
    workers, runtime = sharing.workers(model, runtime), sharing.runtime(runtime)
    dataset = rows.load(data, pictures=False, pictured=True, quiet=not workers.leads)  # they are looked at in the run
    treatment = treating.treatment(dataset, rows)
    size = sharing.batch_size(auditing.batch_size, model, dataset.samples, runtime, workers, work="scores", folder=out)
    audited = auditing.config(seed, size, text_rows=rows.allow_text_rows)
    config = DefenceConfig(
        audit=audited,
        training=training,
        rounds=rounds,
        rewrite=rewrite,
        preset=preset,
        profile=profile,
        substitute="left out" if drop_masked else "mask",
    )
    found = run(
        model,
        dataset,
        config,
        out,
        start=start,
        truth=truth,
        strict=rows.strict,
        treatment=treatment,
        load=runtime.load,
        workers=workers,
        progress=bar_of(workers),
    )
    if not workers.leads:  # the rest is the first process's to tell
        return
    list_problems((*found.dataset.problems[len(dataset.problems) :], *found.untrained, *found.untrusted))
    print("\n".join((f"Verdict: {found.before.verdict}", *found.before.reasons)))
    print(f"Report: {write_report(out / 'audit')}")
    if found.after is not None:
        if told := why_left_out(treatment, found):
            print(told)
        report = None if found.verified is None else write_report(found.verified)
        print("\n".join(recovery_lines(found, report)))
    elif found.before.flagged:
        print("Each flagged row was decided to be honest; nothing is done")
    for line in warnings(found):
        print(line, file=sys.stderr)
    if code := exit_codes.of_defence(found.left):
        sys.exit(code)
