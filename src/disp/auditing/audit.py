"""The audit: suspicion of every sample, a verdict on the dataset, the recurring phrase and the trigger candidate.

No labels and no clean data. A sample is flagged when its given answer is confidently replaced by another one as soon as
a few salient visual tokens are masked. Honest answers do so now and then too, so flags alone prove nothing; what
decides is whether flagged answers share a phrase, and whether the region that they hang on makes the model say that
phrase when it is pasted into other pictures (`disp.auditing.proof`). The steps are numbered as in docs/audit.md.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from math import comb
from pathlib import Path

import numpy as np

from disp.auditing import wording
from disp.auditing.answers import shown_answers
from disp.auditing.config import AuditConfig
from disp.auditing.context import Context
from disp.auditing.cost import cost_of
from disp.auditing.coverage import missed
from disp.auditing.extension import extended, with_all_who_say
from disp.auditing.finders import FINDERS, Finder
from disp.auditing.hypothesis import Finding
from disp.auditing.mask_ratio import RatioChoice, choose_mask_ratio
from disp.auditing.merging import better_explained, in_pictures, merged
from disp.auditing.proof import with_proofs
from disp.auditing.random_control import random_control
from disp.auditing.record import Measured, write_record
from disp.auditing.result import Audit, Verdict
from disp.auditing.truth import audit_against, truth_about
from disp.data.dataset import Dataset
from disp.data.index import Index
from disp.data.sample import queries_of
from disp.data.stored import check_apart, identity
from disp.errors import Undecided
from disp.evaluation.intervals import wilson
from disp.files import claim
from disp.locks import alone
from disp.models.fingerprint import fingerprint
from disp.models.interface import MDLM
from disp.progress import ProgressBar, no_progress
from disp.scale.workers import ALONE, Workers
from disp.suspicion.evidence import Evidence, sample_suspicion, suspicious_query
from disp.suspicion.scoring import score
from disp.suspicion.threshold import suspicion_threshold

# Rows with an image that are enough for any false-alarm rate that can be reached.
MANY = 200


@alone
def audit(
    model: MDLM,
    dataset: Dataset,
    config: AuditConfig,
    out: Path,
    *,
    evidence: dict[str, Evidence] | None = None,
    truth: Path | None = None,
    name: str = "",
    workers: Workers = ALONE,
    progress: ProgressBar = no_progress,
) -> Audit:
    """Audit a fine-tuning set with the model that was fine-tuned on it.

    ``out`` receives ``audit.json``; ``evidence.jsonl`` with one row a sample; ``flagged.csv`` with one row a flagged
    sample; and the trigger candidates as ``candidates/*.png``. A killed run goes on with what it left there:
    ``audit-run.json``, which says what run it is, ``scores.jsonl``, ``holders-*.jsonl`` and ``answers.jsonl``.

    Args:
        model: the model under audit.
        dataset: its fine-tuning set.
        config: see `AuditConfig`.
        out: folder of the run.
        evidence: what `disp.suspicion.scoring.score` found before, if it was run already.
        truth: the manifest of a planted attack, to measure the audit itself; it decides nothing.
        name: how the report calls the model.
        workers: who scores, asks who else says a proven phrase, and gives the answers that people are shown; see
            `disp.scale`. Of several processes each takes the other steps, and the one that leads writes the record.
        progress: opened with a description and a total for each long step; see `disp.progress`.

    Raises:
        Undecided: no sample has an image, or so few have one that nothing can be decided.
        DispError: ``truth`` is no manifest of an attack on this set, or ``out`` holds another audit or is the data's
            own folder.
    """
    start = time.monotonic()
    check_apart(dataset, out)
    index = Index(dataset.samples)
    samples = [sample for sample in dataset.samples if sample.images]
    _check(dataset, len(index.by_picture(samples)), config)
    known = None if truth is None else truth_about(dataset, truth, quiet=not workers.leads)
    workers.wait_for(out / "audit-run.json")
    claim(
        out / "audit-run.json",
        {"weights": fingerprint(model), "config": asdict(config), **identity(dataset, index)},
        "an audit",
        ignore=("batch_size",),
    )
    # 1. Suspicion of every row.
    scored_before = evidence is not None
    if evidence is None:
        with progress("scoring", sum(len(sample.turns) for sample in dataset.samples)) as advance:
            evidence = score(
                model, dataset.samples, config.scoring, out / "scores.jsonl", workers=workers, progress=advance
            )
    # 2. A threshold.
    scores = {sample.id: sample_suspicion(sample, evidence) for sample in samples}
    threshold = suspicion_threshold(np.array(list(scores.values())), config.scoring.least_suspicion)
    context = Context(
        model=model,
        index=index,
        samples={sample.id: sample for sample in samples},
        above=frozenset(key for key, value in scores.items() if value > threshold),
        threshold=threshold,
        evidence=evidence,
        config=config,
        progress=progress,
        folder=out,
        workers=workers,
    )
    # 3 to 8. Each finder proposes phrases, which are tested (4). Where pictures were compared, each row is then claimed
    # by one of the phrases.
    for compared, finders in groupby(FINDERS.values(), key=lambda finder: finder.in_pictures):
        for together in [tuple(finders)] if compared else ((finder,) for finder in finders):
            context = _looked(context, together)
        if compared:
            context = merged(context)
    # 9. Who else says a proven phrase.
    context, aside = _concluded(context)
    result = _result(context, aside, dataset)
    # 10. A mask ratio for rewriting every answer.
    result = replace(result, ratio=_ratio(context, result))
    # What a person needs to judge for themselves.
    answers = shown_answers(model, dataset, result, config, out / "answers.jsonl", progress, workers)
    if not workers.leads:
        return result
    still_above = [sample for sample in samples if result.scores[sample.id] > threshold]
    control = random_control(model, still_above, result, config)
    cost = cost_of(model, dataset, config.scoring.batch_size, time.monotonic() - start, scored_before=scored_before)
    measured = Measured(
        name=name,
        answers=answers,
        random_control=control,
        cost=cost,
        truth=None if known is None else audit_against(known, result),
    )
    write_record(model, dataset, result, config, measured, out)
    return result


def _looked(context: Context, finders: Sequence[Finder]) -> Context:
    """The context with what some finders propose and what came of it; none of them goes by what another proves."""
    before = context
    for finder in finders:
        context = replace(context, hypotheses=(*context.hypotheses, *finder.find(context)))
    new = better_explained(context.hypotheses[len(before.hypotheses) :], context.config.corners)
    context = replace(context, hypotheses=(*before.hypotheses, *new))
    for finder in finders:
        own = [each for each in new if FINDERS[each.found_by] is finder]
        if finder.proves is None:
            found = (Finding(each, unlearnt=True) for each in own)
            context = replace(context, findings=(*context.findings, *found))
            continue
        others = context.unflagged()
        if finder.in_pictures:
            marked = {key for each in context.hypotheses if in_pictures(each) for key in each.samples}
            others = [sample for key, sample in context.samples.items() if key not in marked]
        context = with_proofs(context, finder, own, others)
    return context


def _concluded(context: Context) -> tuple[Context, list[Finding]]:
    """The context with the findings that are worth a person's time, and those that are set aside.

    First proven ones, with who else says them; then phrases that recur beyond doubt on their own, for a set may hold
    several attacks; then what is in the data and the model has not learnt. With ``learnt_only`` these are set
    aside. So is a sentence that nothing but its number speaks for, where questions tell nothing of any answer.
    """
    config, findings = context.config, context.findings
    confirmed = [each for each in findings if each.confirmed]
    rest = [each for each in findings if not each.confirmed and not context.settled(each)]
    recurring = [each for each in rest if each.hypothesis.beyond_doubt(config) and not each.unlearnt]
    context = extended(replace(context, findings=(*confirmed, *recurring)))
    unlearnt = [each for each in findings if each.unlearnt and not context.settled(each)]
    if config.learnt_only:
        return with_all_who_say(context), unlearnt
    named = [context.unasked(each.phrase) for each in (*context.findings, *unlearnt) if each.found_by != "unasked"]

    def is_bare(finding: Finding) -> bool:
        return finding.may_be_standard and finding.hypothesis not in named

    counting = [each for each in unlearnt if not is_bare(each)]
    for each in counting:
        context = context.knowing(each.hypothesis.evidence)
    context = with_all_who_say(replace(context, findings=(*context.findings, *counting)))
    return context, [each for each in unlearnt if is_bare(each)]


def _result(context: Context, aside: Sequence[Finding], dataset: Dataset) -> Audit:
    """The verdict, and the samples that it is about."""
    config, findings = context.config, context.findings
    verdict: Verdict = "no evidence"
    if findings:
        verdict = "poisoned" if any(_proves_poison(context, each) for each in findings) else "suspicious"
    rows = len(dataset.samples) + len(dataset.problems)
    unread = len(dataset.problems) > config.set_aside_share * rows or bool(dataset.unread_parts)
    if verdict == "no evidence" and (unread or dataset.without_picture > config.text_rows_share * len(dataset.samples)):
        verdict = "could not decide"
    members = _members(findings)
    flagged = tuple(key for key in context.samples if key in members)
    counts = len(context.above), len(context.samples)
    not_seen = missed(context.model, dataset, queries_of(dataset.samples))
    return Audit(
        verdict=verdict,
        reasons=wording.reasons(
            verdict,
            findings,
            aside,
            counts,
            dataset.problems,
            rows,
            config,
            missed=not_seen,
            proposed=context.hypotheses,
        ),
        threshold=context.threshold,
        scores={sample.id: sample_suspicion(sample, context.evidence) for sample in dataset.samples},
        flagged=flagged,
        rate=wilson(len(flagged), len(dataset.samples)),
        findings=findings,
        ratio=None,
        evidence=context.evidence,
        missed=not_seen,
    )


def _proves_poison(context: Context, finding: Finding) -> bool:
    """Whether something in the pictures makes the model say what no honest answer would.

    A few tokens do; more may show a thing that honest answers speak of, but no thing is spoken of whatever is asked.
    """
    sentence = context.unasked(finding.phrase)
    by_no_question = sentence is not None and sentence.p_value is not None
    return finding.confirmed and (FINDERS[finding.found_by].proves == "poisoned" or by_no_question)


def _members(findings: Collection[Finding]) -> set[str]:
    return {key for finding in findings for key in finding.all_samples}


def _ratio(context: Context, result: Audit) -> RatioChoice | None:
    """The share of tokens to mask where every answer is to be rewritten.

    What is taken out of pictures, or has not come into the model, does not say how much of what is salient to mask.
    """
    members = _members(result.findings)
    untold = {key for each in result.findings for key in each.with_pattern}
    untold |= {key for each in result.findings if not each.confirmed for key in each.with_copy}
    untold |= {key for each in result.findings if each.unlearnt for key in each.samples}
    untold |= {key for each in result.findings for key in each.by_sentence}
    suspicious = [
        suspicious_query(sample, context.evidence)
        for key, sample in context.samples.items()
        if key in members and key not in untold
    ]
    honest = queries_of([sample for sample in context.unflagged() if sample.id not in members])
    others = [query for query in honest if query.images]
    if not suspicious or not others:
        return None
    config = context.config
    with context.progress("choosing a mask ratio", len(config.ratio.ratios)) as advance:
        return choose_mask_ratio(
            context.model,
            suspicious,
            others,
            context.evidence,
            lambda query, answer: result.says_planted(query.sample_id, query.response, answer),
            config,
            progress=advance,
        )


def _check(dataset: Dataset, pictures: int, config: AuditConfig) -> None:
    """Make sure that the paste test could prove a phrase, with one picture left to paste into."""
    if pictures and _can_prove(pictures, config):
        return
    enough = next((count for count in range(max(1, pictures), MANY) if _can_prove(count, config)), None)
    raise Undecided(wording.too_few(dataset.path, pictures, enough, config.false_alarm_rate))


def _can_prove(pictures: int, config: AuditConfig) -> bool:
    """Whether a permutation test among so many pictures can reach the false-alarm rate."""
    rest, proof = pictures - 1, config.proof
    # As many donors as there may be of the fewest that share a phrase, against all that are left over.
    donors = range(min(config.tokens.least_flagged, proof.donors), min(proof.donors, rest) + 1)
    regroupings = max((comb(count + min(proof.controls, rest - count), count) for count in donors), default=1)
    return min(regroupings, proof.regroupings + 1) * config.false_alarm_rate >= 1
