"""The audit: suspicion of every sample, a verdict on the dataset, the recurring phrase and the trigger candidate.

No labels and no clean data. A sample is flagged when its given answer is confidently replaced by another one as soon as
a few salient visual tokens are masked. Honest answers do so now and then too, so flags alone prove nothing; what
decides is whether flagged answers share a phrase, and whether the region that they hang on makes the model say that
phrase when it is pasted into other pictures (`disp.auditing.paste`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import comb
from pathlib import Path

import numpy as np

from disp.auditing import wording
from disp.auditing.answers import shown_answers
from disp.auditing.clusters import (
    already_proven,
    joined_answers,
    named,
    tested_clusters,
    with_other_holders,
)
from disp.auditing.cost import cost_of
from disp.auditing.distinct import by_picture
from disp.auditing.findings import Audit, AuditConfig, Verdict
from disp.auditing.growth import GROWING_RATIOS
from disp.auditing.phrases import LEAST_RESPONSES, TURN_END, Phrase, holds, recurring_phrases
from disp.auditing.pictures import look_at_pictures
from disp.auditing.random_control import random_control
from disp.auditing.ratio import RATIOS, choose_mask_ratio
from disp.auditing.record import Measured, write_record
from disp.auditing.repeated import ANSWERS, SENTENCES, WIDE_RATIO, vanishing_phrases
from disp.auditing.statistics import MAX_REGROUPINGS
from disp.auditing.truth import compared_with_truth, read_truth
from disp.data.llava import Dataset, identity
from disp.data.sample import Sample, queries_of
from disp.errors import Undecided
from disp.evaluation.intervals import wilson
from disp.files import claim
from disp.models.fingerprint import fingerprint
from disp.models.interface import MDLM
from disp.progress import ProgressBar, no_progress
from disp.suspicion.scoring import Evidence, sample_suspicion, score, suspicious_query
from disp.suspicion.threshold import suspicion_threshold

# Largest p-value, corrected for the phrases tried, of a phrase that is worth pasting for. A picture of a rare thing
# makes a model name that thing wherever it is pasted, so that pasting alone proves nothing.
PASTE_ALPHA = 0.05
# Rows with an image that are enough for any false-alarm rate that can be reached.
MANY = 200


def audit(
    model: MDLM,
    dataset: Dataset,
    config: AuditConfig,
    out: Path,
    *,
    evidence: dict[str, Evidence] | None = None,
    truth: Path | None = None,
    name: str = "",
    progress: ProgressBar = no_progress,
) -> Audit:
    """Audit a fine-tuning set with the model that was fine-tuned on it.

    ``out`` receives ``audit.json``, ``evidence.jsonl`` with one row a sample, and the trigger candidates as
    ``candidates/*.png``. Scores and answers that a killed run left in ``out`` are used again.

    Args:
        model: the model under audit.
        dataset: its fine-tuning set.
        config: see `AuditConfig`.
        out: folder of the run.
        evidence: what `disp.suspicion.scoring.score` found before, if it was run already.
        truth: the manifest of a planted attack, to measure the audit itself; it decides nothing.
        name: how the report calls the model.
        progress: opened with a description and a total for each long step; see `disp.progress`.

    Raises:
        Undecided: no sample has an image, or so few have one that nothing can be decided.
        DispError: ``truth`` is no manifest, or ``out`` holds another audit.
    """
    start = time.monotonic()
    samples = [sample for sample in dataset.samples if sample.images]
    _check(dataset, len(by_picture(samples)), config)
    poisoned = None if truth is None else read_truth(truth)
    claim(
        out / "audit-run.json",
        {"model": name, "weights": fingerprint(model), "config": asdict(config), **identity(dataset)},
        "an audit",
        ignore=("batch_size",),
    )
    queries = queries_of(dataset.samples)
    # 1. Suspicion of every sample.
    scored_before = evidence is not None
    if evidence is None:
        with progress("scoring", len(queries)) as advance:
            evidence = score(model, dataset.samples, config.scoring, out / "scores.jsonl", progress=advance)
    scores = {sample.id: sample_suspicion(sample, evidence) for sample in dataset.samples}
    values = np.array([scores[sample.id] for sample in samples])
    threshold = suspicion_threshold(values, config.scoring.least_suspicion)
    above = [sample for sample in samples if scores[sample.id] > threshold]
    # 2. What the flagged answers share.
    others = [sample for sample in samples if scores[sample.id] <= threshold]
    phrases = _recurring(above, others, evidence)
    # 3. Whether the regions that they hang on make the model say it.
    tried: list[tuple[Phrase, list[Sample], dict[str, Evidence]]]
    tried = [(phrase, [above[index] for index in phrase.flagged], {}) for phrase in phrases]
    clusters, evidence = tested_clusters(model, tried, others, evidence, config, len(phrases), "tokens", progress)
    # 4. Whether pictures of one phrase have something in common that makes the model say it.
    pictures, evidence = look_at_pictures(model, samples, clusters, evidence, config, len(phrases), progress)
    clusters += pictures.clusters
    # 5. Whether what many answers repeat, and lose under larger masks only, hangs on a window of the picture.
    explained = {key for cluster in pictures.clusters for key in cluster.samples}
    unflagged = [sample for sample in others if sample.id not in explained]
    with progress("looking through repeated sentences", SENTENCES * ANSWERS) as advance:
        wide = vanishing_phrases(model, unflagged, evidence, config, progress=advance)
    tried = [
        (phrase, [unflagged[index] for index in phrase.flagged], lost)
        for phrase, lost in wide
        if not already_proven(phrase, clusters)
    ]
    tests = pictures.tests + len(tried)
    found, evidence = tested_clusters(model, tried, others, evidence, config, tests, "window", progress)
    clusters += found
    # 6. Who else says a proven phrase. One that only recurs stays beside it: a set may hold several attacks.
    clusters, evidence = with_other_holders(
        model,
        named(clusters, config),
        samples,
        evidence,
        threshold,
        pictures.patterns,
        pictures.pieces,
        config,
        progress,
    )
    # What the model has not learnt is in the data all the same.
    aside = []
    for cluster, seen in pictures.unlearnt:
        if already_proven(cluster.phrase, clusters):
            continue
        if config.learnt_only:
            aside.append(cluster)
        else:
            clusters.append(cluster)
            evidence = {**evidence, **seen}
    members = {key for cluster in clusters for key in (*cluster.samples, *cluster.more)}
    # 7. The verdict, and the samples that it is about.
    scores = {sample.id: sample_suspicion(sample, evidence) for sample in dataset.samples}
    flagged = tuple(sample.id for sample in samples if sample.id in members)
    # A window shows things as well, which an honest answer may speak of, and so may what pictures have in common: they
    # prove less than a few tokens do.
    sure = any(cluster.confirmed and cluster.found_by == "tokens" for cluster in clusters)
    verdict: Verdict = "poisoned" if sure else "suspicious" if clusters else "no evidence"
    rows = len(dataset.samples) + len(dataset.problems)
    if verdict == "no evidence" and len(dataset.problems) > wording.SET_ASIDE_SHARE * rows:
        verdict = "could not decide"
    result = Audit(
        verdict,
        wording.reasons(
            verdict,
            clusters,
            aside,
            (len(above), len(samples)),
            dataset.problems,
            rows,
            wide=WIDE_RATIO,
            grown=GROWING_RATIOS[-1],
        ),
        threshold,
        scores,
        flagged,
        wilson(len(flagged), len(dataset.samples)),
        tuple(clusters),
        None,
        evidence,
    )
    # 8. The share of tokens to mask where every answer is to be rewritten.
    # What is taken out of pictures, or has not come into the model, does not say how much of what is salient to mask.
    carriers = {key for cluster in clusters for key in cluster.carriers}
    carriers |= {key for cluster in clusters if not cluster.confirmed for key in cluster.by_piece}
    suspicious = [suspicious_query(sample, evidence) for sample in samples if sample.id in members - carriers]
    unsuspicious = queries_of([sample for sample in unflagged if sample.id not in members])
    if suspicious and unsuspicious:
        with progress("choosing a mask ratio", len(RATIOS)) as advance:
            ratio = choose_mask_ratio(
                model,
                suspicious,
                unsuspicious,
                evidence,
                lambda query, answer: result.says_phrase(query.sample_id, answer),
                config.decode,
                seed=config.seed,
                batch_size=config.batch_size,
                progress=advance,
            )
        result = replace(result, ratio=ratio)
    # 9. What a person needs to judge for themselves.
    answers = shown_answers(model, dataset, result, config, out / "answers.jsonl", progress)
    still_above = [sample for sample in samples if scores[sample.id] > threshold]
    control = random_control(model, still_above, result, config)
    cost = cost_of(model, dataset, config.scoring.batch_size, time.monotonic() - start, scored_before=scored_before)
    measured_truth = None if poisoned is None else compared_with_truth(result, poisoned)
    write_record(model, dataset, result, config, Measured(name, answers, control, cost, measured_truth), out)
    return result


def _recurring(above: Sequence[Sample], others: Sequence[Sample], evidence: Mapping[str, Evidence]) -> list[Phrase]:
    """Phrases that recur among the answers above the threshold; ``Phrase.flagged`` are indices of ``above``.

    Pictures are counted, not rows: all that is asked about one picture may hang on the same thing in it. Rows without
    a picture are left out, since none of them could be flagged.
    """
    said = [joined_answers(sample, evidence) for sample in above]
    elsewhere = [joined_answers(sample, None) for sample in others]
    flagged, rest = by_picture(above), by_picture(others)
    joint = f" {TURN_END} "
    phrases = recurring_phrases(
        [joint.join(said[index] for index in rows) for rows in flagged.values()],
        [joint.join(elsewhere[index] for index in rows) for picture, rows in rest.items() if picture not in flagged],
        alpha=PASTE_ALPHA,
    )
    rows_of = list(flagged.values())
    return [
        replace(
            phrase,
            flagged=tuple(
                sorted(row for place in phrase.flagged for row in rows_of[place] if holds(said[row], phrase.words))
            ),
            elsewhere=sum(holds(text, phrase.words) for text in elsewhere),
        )
        for phrase in phrases
    ]


def _check(dataset: Dataset, pictures: int, config: AuditConfig) -> None:
    """Make sure that the paste test could prove a phrase, with one picture left to paste into."""
    if pictures and _can_prove(pictures, config):
        return
    enough = next((count for count in range(max(1, pictures), MANY) if _can_prove(count, config)), None)
    raise Undecided(wording.too_few(dataset.path, pictures, enough, config.false_alarm_rate))


def _can_prove(pictures: int, config: AuditConfig) -> bool:
    """Whether a permutation test among so many pictures can reach the false-alarm rate."""
    rest = pictures - 1
    # As many donors as there may be of the fewest that share a phrase, against all that are left over.
    donors = range(min(LEAST_RESPONSES, config.donors), min(config.donors, rest) + 1)
    regroupings = max((comb(count + min(config.controls, rest - count), count) for count in donors), default=1)
    return min(regroupings, MAX_REGROUPINGS + 1) * config.false_alarm_rate >= 1
