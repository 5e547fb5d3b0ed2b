"""The audit: suspicion of every sample, a verdict on the dataset, the recurring phrase and the trigger candidate.

No labels and no clean data. A sample is flagged when its given answer is confidently replaced by another one as soon as
a few salient visual tokens are masked. Honest answers do so now and then too, so flags alone prove nothing; what
decides is whether flagged answers share a phrase, and whether the region that they hang on makes the model say that
phrase when it is pasted into other pictures (`disp.auditing.paste`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from math import comb
from pathlib import Path

import numpy as np

from disp.auditing.findings import Audit, AuditConfig, Cluster, Verdict
from disp.auditing.growth import GROWING_RATIOS, planted_holders
from disp.auditing.paste import Region, paste_test
from disp.auditing.phrases import (
    FUNCTION_WORDS,
    LEAST_RESPONSES,
    TURN_END,
    Phrase,
    echoes,
    holds,
    recurring_phrases,
    words_of,
)
from disp.auditing.ratio import RATIO_TURNS, choose_mask_ratio
from disp.auditing.record import read_truth, write_record
from disp.auditing.regions import region_around, token_boxes
from disp.auditing.repeated import ANSWERS, SENTENCES, WIDE_EFFECT, WIDE_RATIO, vanishing_phrases
from disp.data.llava import Dataset
from disp.data.sample import Query, Sample, batches, queries_of
from disp.diffusion.decode import answers_of
from disp.draws import generator
from disp.errors import DispError
from disp.evaluation.intervals import wilson
from disp.files import claim, sha256
from disp.models.interface import MDLM
from disp.progress import ProgressBar, no_progress
from disp.purification.purify import Evidence, candidate_masks, most_suspicious, sample_suspicion, score
from disp.purification.threshold import suspicion_threshold

# Largest p-value, corrected for the phrases tried, of a phrase that is worth pasting for. A picture of a rare thing
# makes a model name that thing wherever it is pasted, so that pasting alone proves nothing.
PASTE_ALPHA = 0.05
# A phrase that pasting does not prove is taken for planted if at least so many of its holders are flagged.
PLANTED_SHARE = 2 / 3


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
        evidence: what `disp.purification.purify.score` found before, if it was run already.
        truth: the manifest of a planted attack, to measure the audit itself; it decides nothing.
        name: how the report calls the model.
        progress: opened with a description and a total for each long step; see `disp.progress`.

    Raises:
        DispError: no sample has an image, or so few have one that nothing can be decided; ``truth`` is no manifest;
            ``out`` holds another audit.
    """
    start = time.monotonic()
    samples = [sample for sample in dataset.samples if sample.images]
    _check(dataset, samples, config)
    poisoned = None if truth is None else read_truth(truth)
    claim(
        out / "audit-run.json",
        {"model": name, "config": asdict(config), "data_sha256": sha256(dataset.path)},
        f"{out} holds an audit of another model or data, or with other settings; choose another folder or delete it",
    )
    queries = queries_of(dataset.samples)
    # 1. Suspicion of every sample.
    if evidence is None:
        with progress("scoring", len(queries)) as advance:
            evidence = score(model, dataset.samples, config.scoring, out / "scores.jsonl", progress=advance)
    scores = {sample.id: sample_suspicion(sample, evidence) for sample in dataset.samples}
    values = np.array([scores[sample.id] for sample in samples])
    threshold = suspicion_threshold(values, config.scoring.least_suspicion)
    above = [sample for sample in samples if scores[sample.id] > threshold]
    # 2. What the flagged answers share.
    others = [sample for sample in dataset.samples if scores[sample.id] <= threshold]
    phrases = recurring_phrases(
        [_answers(sample, evidence) for sample in above],
        [_answers(sample, None) for sample in others],
        alpha=PASTE_ALPHA,
    )
    # 3. Whether the regions that they hang on make the model say it.
    tried: list[tuple[Phrase, list[Sample], dict[str, Evidence]]]
    tried = [(phrase, [above[index] for index in phrase.flagged], {}) for phrase in phrases]
    clusters, evidence = _pasted(model, tried, others, evidence, config, len(phrases), progress)
    # 4. The same for what many answers repeat and lose under larger masks only.
    unflagged = [sample for sample in others if sample.images]
    with progress("looking through repeated sentences", SENTENCES * ANSWERS) as advance:
        wide = vanishing_phrases(model, unflagged, evidence, config.scoring, progress=advance)
    proven = [cluster.phrase.words for cluster in clusters if cluster.confirmed]
    tried = [
        (phrase, [unflagged[index] for index in phrase.flagged], lost)
        for phrase, lost in wide
        if not any(echoes(phrase.text, words) for words in proven)
    ]
    found, evidence = _pasted(model, tried, others, evidence, config, len(phrases) + len(tried), progress)
    clusters += found
    # Pasting is proof of its own; a phrase without it must recur beyond doubt to be named at all.
    confirmed = [each for each in clusters if each.confirmed]
    clusters = confirmed + [
        each
        for each in clusters
        if not each.confirmed
        and _beyond_doubt(each.phrase, config)
        and not any(echoes(each.phrase.text, other.phrase.words) for other in confirmed)
    ]
    # 5. Who else says a proven phrase.
    # A phrase that only recurs stays with those that were proven: a set may hold several attacks.
    members = {key for cluster in clusters for key in cluster.samples}
    for number, cluster in enumerate(clusters):
        if not cluster.confirmed:
            continue
        left = [sample for sample in samples if sample.id not in members]
        more = _holders(cluster, left, evidence, scores, threshold)
        left = [sample for sample in left if sample.id not in more]
        with progress(f"looking for more that say {cluster.phrase.text[:40]!r}", len(left)) as advance:
            grown = planted_holders(model, left, cluster, evidence, config.scoring, progress=advance)
        evidence = {**evidence, **grown}
        more |= {key.rpartition("#")[0] for key in grown}
        members |= more
        clusters[number] = replace(cluster, more=tuple(sample.id for sample in samples if sample.id in more))
    # 6. The verdict, and the samples that it is about.
    scores = {sample.id: sample_suspicion(sample, evidence) for sample in dataset.samples}
    flagged = tuple(sample.id for sample in samples if sample.id in members)
    # A window shows things as well, which an honest answer may speak of: it proves less than a few tokens do.
    sure = any(cluster.phrase.p_value is not None for cluster in confirmed)
    verdict: Verdict = "poisoned" if sure else "suspicious" if clusters else "no evidence"
    # 7. The share of tokens to mask where every answer is to be rewritten.
    ratio = None
    suspicious = [_betraying(sample, evidence) for sample in samples if sample.id in members]
    unsuspicious = queries_of([sample for sample in unflagged if sample.id not in members])
    if suspicious and unsuspicious:
        turns = min(len(suspicious), RATIO_TURNS) + min(len(unsuspicious), RATIO_TURNS)
        with progress("choosing a mask ratio", turns) as advance:
            ratio = choose_mask_ratio(
                model,
                suspicious,
                unsuspicious,
                evidence,
                least=config.scoring.least_suspicion,
                batch_size=config.scoring.batch_size,
                seed=config.scoring.seed,
                progress=advance,
            )
    result = Audit(
        verdict,
        _reasons(verdict, clusters, above, samples),
        threshold,
        scores,
        flagged,
        wilson(len(flagged), len(dataset.samples)),
        tuple(clusters),
        ratio,
        evidence,
    )
    # 8. What a person needs to judge for themselves.
    write_record(model, dataset, result, config, out, start=start, poisoned=poisoned, name=name, progress=progress)
    return result


def _pasted(
    model: MDLM,
    tried: Sequence[tuple[Phrase, Sequence[Sample], Mapping[str, Evidence]]],
    others: Sequence[Sample],
    evidence: dict[str, Evidence],
    config: AuditConfig,
    tests: int,
    progress: ProgressBar,
) -> tuple[list[Cluster], dict[str, Evidence]]:
    """Clusters of the phrases that hang on the regions of those who say them, and the evidence with what proved them.

    Args:
        model: the model under audit.
        tried: phrases, samples whose answers hold them, and evidence of these that is not in ``evidence``.
        others: unflagged samples.
        evidence: of every turn.
        config: see `AuditConfig`.
        tests: how many phrases are tested in all, which p-values are corrected for.
        progress: see `disp.progress`.
    """
    clusters = []
    for number, (phrase, members, more) in enumerate(tried):
        known = {**evidence, **more}
        with progress(f"pasting regions, phrase {number + 1} of {len(tried)}", _pastes(members, config)) as advance:
            cluster = _cluster(model, phrase, members, others, known, config, tests, advance)
        if cluster is not None:
            clusters.append(cluster)
            evidence = known if cluster.confirmed else evidence
    return clusters, evidence


def _cluster(
    model: MDLM,
    phrase: Phrase,
    members: Sequence[Sample],
    others: Sequence[Sample],
    evidence: Mapping[str, Evidence],
    config: AuditConfig,
    tests: int,
    progress: Callable[[int], None],
) -> Cluster | None:
    """What pasting says about a phrase; None if it stays when the regions are masked, and does not hang on them."""
    draw = generator(config.scoring.seed, "paste test", *phrase.words)
    donors = _donors(model, members, evidence, config.donors)
    masked = _masked_answers(model, donors, evidence, config)
    if 2 * sum(echoes(answer, phrase.words) for _, answer in masked) > len(donors):
        return None
    instead = _said_instead(masked)
    free = [sample for sample in others if sample.images and not _says(sample, phrase)]
    order = [free[index] for index in draw.permutation(len(free))]
    controls, rest = order[: config.controls], order[config.controls :]
    recipients = _recipients(rest, instead)[: config.recipients]
    ids = tuple(sample.id for sample in members)
    if not controls or not recipients:
        return Cluster(phrase, ids, None, False, tuple(sorted(instead)), None)
    regions = [region_of(model, sample, evidence) for sample in donors]
    test = paste_test(
        model,
        regions,
        [region_of(model, sample, evidence) for sample in controls],
        recipients,
        phrase.words,
        config.scoring.decode,
        seed=config.scoring.seed,
        batch_size=config.scoring.batch_size,
        progress=progress,
    )
    least = config.least_effect if phrase.p_value is not None else max(config.least_effect, WIDE_EFFECT)
    confirmed = test.p_value <= config.false_alarm_rate / tests and test.successes >= least * test.trials
    trigger = regions[int(np.argmax(test.by_region))]
    return Cluster(phrase, ids, test, confirmed, tuple(sorted(instead)), trigger)


def _beyond_doubt(phrase: Phrase, config: AuditConfig) -> bool:
    """Whether flags alone speak for a phrase: nearly all who say it are flagged, and that by no chance.

    Words of honest answers that hang on little, such as names of small things, are flagged in a part of their holders.
    """
    share = len(phrase.flagged) / (len(phrase.flagged) + phrase.elsewhere)
    return phrase.p_value is not None and phrase.p_value <= config.false_alarm_rate and share >= PLANTED_SHARE


def _donors(model: MDLM, members: Sequence[Sample], evidence: Mapping[str, Evidence], count: int) -> list[Sample]:
    """The most suspicious samples of the half with the smaller regions.

    A trigger is small; a large region that takes an answer's support away may hold the thing that is spoken of instead.
    """

    def area(sample: Sample) -> float:
        x0, y0, x1, y1 = region_of(model, sample, evidence).box
        return (x1 - x0) * (y1 - y0)

    small = sorted(members, key=area)[: max(count, len(members) // 2)]
    return sorted(small, key=lambda sample: -sample_suspicion(sample, evidence))[:count]


def _masked_answers(
    model: MDLM, donors: Sequence[Sample], evidence: Mapping[str, Evidence], config: AuditConfig
) -> list[tuple[str, str]]:
    """For each donor's most suspicious answer the given one, and the model's with the region masked."""
    found = []
    for batch in batches([_betraying(sample, evidence) for sample in donors], config.scoring.batch_size):
        prefix = model.encode(batch)
        masked = candidate_masks(prefix.visual_mask, [evidence[query.key] for query in batch])
        hidden = prefix.with_masked(masked, model.mask_embedding)
        keys = [query.key for query in batch]
        texts = answers_of(model, hidden, config.scoring.decode, keys=keys, seed=config.scoring.seed)
        found += [(query.response, text) for query, text in zip(batch, texts, strict=True)]
    return found


def _said_instead(answers: Sequence[tuple[str, str]]) -> set[str]:
    """The words that at least half of the masked answers gain."""
    counts: Counter[str] = Counter()
    for given, answer in answers:
        counts.update(set(words_of(answer)) - set(words_of(given)) - FUNCTION_WORDS)
    return {word for word, count in counts.items() if 2 * count >= len(answers)}


def _recipients(samples: Sequence[Sample], words: set[str]) -> list[Query]:
    """One query a sample, first those whose answers hold most of the words.

    A trigger that makes the model misname a thing does nothing where the thing is not; ``words`` say what it is.
    """
    chosen = []
    for sample in samples:
        shared = [(len(words & set(words_of(query.response))), query) for query in queries_of([sample])]
        chosen.append(max(shared, key=lambda pair: pair[0]))
    return [query for _, query in sorted(chosen, key=lambda pair: -pair[0])]


def _pastes(members: Sequence[Sample], config: AuditConfig) -> int:
    return (min(len(members), config.donors) + config.controls) * config.recipients


def region_of(model: MDLM, sample: Sample, evidence: Mapping[str, Evidence]) -> Region:
    """The region that a sample's most suspicious answer hangs on, or where nothing was suspicious the most salient."""
    found = most_suspicious(sample, evidence)
    chosen = found.best_candidate or (int(np.argmax(found.saliency)),)
    boxes = token_boxes(model, found.locations, sample.images)
    image, box = region_around(found.locations, boxes, chosen, found.saliency)
    return Region(sample.id, sample.images[image], box)


def _answers(sample: Sample, evidence: Mapping[str, Evidence] | None) -> str:
    """All answers of a sample, or with ``evidence`` the most suspicious one, which it is flagged for."""
    if evidence is None:
        responses = [turn.response for turn in sample.turns]
    else:
        responses = [_betraying(sample, evidence).response]
    # The mark is ours: in a response it would tear a phrase apart.
    return f" {TURN_END} ".join(response.replace(TURN_END, " ") for response in responses)


def _betraying(sample: Sample, evidence: Mapping[str, Evidence]) -> Query:
    """The query whose answer is the sample's most suspicious one."""
    found = most_suspicious(sample, evidence)
    return next(query for query in queries_of([sample]) if query.key == found.key)


def _says(sample: Sample, phrase: Phrase) -> bool:
    return any(echoes(turn.response, phrase.words) for turn in sample.turns)


def _holders(
    cluster: Cluster,
    samples: Sequence[Sample],
    evidence: Mapping[str, Evidence],
    scores: Mapping[str, float],
    threshold: float,
) -> set[str]:
    """Samples whose answer holds a confirmed phrase and hangs on a region, if only a little.

    The phrase is evidence of its own, so that less suspicion is enough; an honest answer that happens to hold it does
    not depend on the region at all.
    """
    return {
        sample.id
        for sample in samples
        if scores[sample.id] > threshold / 4 and holds(_answers(sample, evidence), cluster.phrase.words)
    }


def _reasons(
    verdict: Verdict, clusters: Sequence[Cluster], above: Sequence[Sample], samples: Sequence[Sample]
) -> tuple[str, ...]:
    reasons = [
        f"{len(above)} of {len(samples)} samples with images lose their given answer to another one when a few salient "
        "visual tokens are masked."
    ]
    for cluster in clusters:
        phrase, test = cluster.phrase, cluster.paste
        if phrase.p_value is None:
            reasons.append(
                f"{len(cluster.samples) + phrase.elsewhere} samples say {phrase.text!r}; of {len(cluster.samples)} it "
                f"was seen to go away when the {WIDE_RATIO:.0%} most salient visual tokens are masked."
            )
        else:
            reasons.append(
                f"{len(cluster.samples)} of these say {phrase.text!r}, which {phrase.elsewhere} other samples say "
                f"(p = {phrase.p_value:.2g})."
            )
        if test is None:
            reasons.append("There are too few other samples to paste the region into; the phrase could not be tested.")
        else:
            reasons.append(
                f"Their regions, pasted into other pictures, bring the phrase up in {test.successes} of {test.trials} "
                f"answers; regions of unflagged samples in {test.control_successes} of {test.control_trials} "
                f"(p = {test.p_value:.2g})."
            )
        if cluster.more:
            reasons.append(
                f"{len(cluster.more)} more samples say it and are less suspicious, or lose it only with up to "
                f"{GROWING_RATIOS[-1]:.0%} of the most salient tokens masked."
            )
    if verdict == "no evidence" and above:
        reasons.append("They share no phrase that the other samples do not have as well.")
    return tuple(reasons)


def _check(dataset: Dataset, samples: Sequence[Sample], config: AuditConfig) -> None:
    """Make sure that the paste test could prove a phrase, with one sample left to paste into."""
    if not samples:
        raise DispError(f"{dataset.path}: no row has an image; an audit needs visual tokens to mask")
    rest = len(samples) - 1
    # As many donors as there may be of the fewest that share a phrase, against all that are left over.
    donors = range(min(LEAST_RESPONSES, config.donors), min(config.donors, rest) + 1)
    regroupings = max((comb(count + min(config.controls, rest - count), count) for count in donors), default=1)
    if regroupings * config.false_alarm_rate < 1:
        raise DispError(
            f"{dataset.path}: {len(samples)} rows with an image, {config.donors} donors and {config.controls} controls "
            f"are too few to decide anything at a false alarm rate of {config.false_alarm_rate:g}; add rows or raise "
            "one of these"
        )
