"""Phrases that suspicious answers share, and whether what the answers hang on makes the model say them.

A cluster is a phrase with the samples that are held for planted because of it. Its proof is the paste test: the regions
of its samples, cut out and pasted into other pictures, bring the phrase up there (`disp.auditing.paste`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from disp.auditing.distinct import by_picture, distinct
from disp.auditing.findings import IN_PICTURES, AuditConfig, Cluster, FoundBy
from disp.auditing.growth import planted_holders
from disp.auditing.paste import Region, paste_test, pattern_test
from disp.auditing.patterns import random_patterns
from disp.auditing.phrases import FUNCTION_WORDS, TURN_END, Phrase, echoes, holds, words_of
from disp.auditing.regions import region_around
from disp.auditing.repeated import WIDE_EFFECT
from disp.data.sample import Query, Sample, batches, queries_of
from disp.decoding.generate import answers_of, generate
from disp.draws import generator
from disp.models.interface import MDLM
from disp.progress import ProgressBar
from disp.purification.pattern import Pattern, without_pattern
from disp.suspicion.places import token_boxes
from disp.suspicion.scoring import Evidence, candidate_masks, given_answers, sample_suspicion, suspicious_query
from disp.suspicion.support import preference_for_another, suspicion_of

T = TypeVar("T")

# Pictures that random patterns are made of.
CONTROL_PICTURES = 40
# A phrase that pasting does not prove is taken for planted if at least so many of its holders are flagged.
PLANTED_SHARE = 2 / 3
# If so many of a proven phrase's flagged samples have its pattern or piece, that is the trigger, and whoever says the
# phrase without it is honest: a larger mask makes the name of a frequent thing appear in honest answers too.
TOLD_SHARE = 0.95


def tested_clusters(
    model: MDLM,
    tried: Sequence[tuple[Phrase, Sequence[Sample], Mapping[str, Evidence]]],
    others: Sequence[Sample],
    evidence: dict[str, Evidence],
    config: AuditConfig,
    tests: int,
    found_by: FoundBy,
    progress: ProgressBar,
) -> tuple[list[Cluster], dict[str, Evidence]]:
    """Clusters of the phrases that hang on the regions of those who say them, and the evidence with what proved them.

    Args:
        model: the model under audit.
        tried: phrases, samples whose answers hold them, and evidence of these that is not in ``evidence``.
        others: unflagged samples with a picture.
        evidence: of every turn.
        config: see `AuditConfig`.
        tests: how many phrases are tested in all, which p-values are corrected for.
        found_by: what the phrases were found by.
        progress: see `disp.progress`.
    """
    clusters = []
    for number, (phrase, members, more) in enumerate(tried):
        known = {**evidence, **more}
        with progress(f"pasting regions, phrase {number + 1} of {len(tried)}", _pastes(members, config)) as advance:
            cluster = _cluster(model, phrase, members, others, known, config, tests, found_by, advance)
        if cluster is not None:
            clusters.append(cluster)
            evidence = known if cluster.confirmed else evidence
    return clusters, evidence


def pattern_clusters(
    model: MDLM,
    tried: Sequence[tuple[Phrase, Sequence[Sample], Pattern]],
    others: Sequence[Sample],
    evidence: dict[str, Evidence],
    config: AuditConfig,
    tests: int,
    progress: ProgressBar,
) -> tuple[list[Cluster], dict[str, Evidence]]:
    """A cluster for each pattern, and the evidence with what taking out those that prove a phrase did.

    Args:
        model: the model under audit.
        tried: phrases, samples whose answers hold them and whose pictures have the pattern, and the pattern.
        others: samples with a picture that hold none of these phrases for that reason.
        evidence: of every turn.
        config: see `AuditConfig`.
        tests: how many phrases are tested in all, which p-values are corrected for.
        progress: see `disp.progress`.
    """
    clusters = []
    for number, (phrase, members, pattern) in enumerate(tried):
        count = 2 * config.donors * config.recipients
        with progress(f"laying patterns over pictures, phrase {number + 1} of {len(tried)}", count) as advance:
            cluster = _pattern_cluster(model, phrase, members, pattern, others, config, tests, advance)
        clusters.append(cluster)
        if cluster.confirmed:
            evidence = {**evidence, **pattern_evidence(model, members, pattern, evidence, config)}
    return clusters, evidence


def pattern_evidence(
    model: MDLM,
    samples: Sequence[Sample],
    pattern: Pattern,
    evidence: Mapping[str, Evidence],
    config: AuditConfig,
) -> dict[str, Evidence]:
    """New evidence of samples: how suspicious their answers are where the pattern is taken out of the picture.

    No visual token is their best candidate, and their suspicion is at least what it was.
    """
    found = {}
    for batch in batches(queries_of(samples), config.scoring.batch_size):
        base, each = (
            preference_for_another(model, prefix, given_answers(model, prefix, batch))
            for prefix in (model.encode(batch), model.encode([without_pattern(query, pattern) for query in batch]))
        )
        for query, value in zip(
            batch, suspicion_of(base, each[:, None], config.scoring.mistake_weight).tolist(), strict=True
        ):
            before = evidence[query.key]
            found[query.key] = replace(before, suspicion=max(before.suspicion or 0.0, value), best_candidate=())
    return found


def already_proven(phrase: Phrase, clusters: Sequence[Cluster]) -> bool:
    """Whether the phrase says what that of a confirmed cluster says."""
    return any(each.confirmed and echoes(phrase.text, each.phrase.words) for each in clusters)


def named(clusters: Sequence[Cluster], config: AuditConfig) -> list[Cluster]:
    """The clusters that are worth a person's time: proven ones, then those that recur beyond doubt on their own."""
    confirmed = [each for each in clusters if each.confirmed]
    return confirmed + [
        each
        for each in clusters
        if not each.confirmed and _beyond_doubt(each.phrase, config) and not already_proven(each.phrase, confirmed)
    ]


def with_other_holders(
    model: MDLM,
    clusters: Sequence[Cluster],
    samples: Sequence[Sample],
    evidence: dict[str, Evidence],
    threshold: float,
    shared: Sequence[tuple[Phrase, Sequence[Sample], Pattern]],
    copied: Sequence[tuple[Phrase, Sequence[Sample], Mapping[str, Evidence]]],
    config: AuditConfig,
    progress: ProgressBar,
) -> tuple[list[Cluster], dict[str, Evidence]]:
    """The clusters with who else says their phrase, where it is proven, and the evidence with what betrayed these.

    Who has a phrase's pattern or piece in the picture is planted without more ado; a phrase that was found by one of
    them is planted in nobody else.

    Args:
        model: the model under audit.
        clusters: those that are named.
        samples: all samples with an image.
        evidence: of every turn.
        threshold: suspicion above which a sample is flagged.
        shared: phrases, samples that hold them and whose pictures have a pattern in common, and the pattern.
        copied: phrases, samples that hold them and whose pictures have a piece in common, and the evidence that masking
            it gave.
        config: see `AuditConfig`.
        progress: see `disp.progress`.
    """
    members = {key for cluster in clusters for key in cluster.samples}
    result = []
    for cluster in clusters:
        if cluster.confirmed and cluster.found_by not in IN_PICTURES:
            left = [sample for sample in samples if sample.id not in members]
            with_pattern, pattern = _of_phrase(cluster, shared) or ((), None)
            with_piece, seen = _of_phrase(cluster, copied) or ((), {})
            ids = {sample.id for sample in with_pattern}
            carriers = [sample for sample in left if sample.id in ids]
            if pattern is not None:
                evidence = {**evidence, **pattern_evidence(model, carriers, pattern, evidence, config)}
            taken_out = {sample.id for sample in carriers}
            more = set(taken_out)
            # Where the pictures tell who is planted, the model is not asked who else might be.
            told = ids | {sample.id for sample in with_piece}
            if sum(key in told for key in cluster.samples) < TOLD_SHARE * len(cluster.samples):
                left = [sample for sample in left if sample.id not in more]
                more |= _holders(cluster, left, evidence, threshold)
                left = [sample for sample in left if sample.id not in more]
                with progress(f"looking for more that say {cluster.phrase.text[:40]!r}", len(left)) as advance:
                    found = planted_holders(model, left, cluster, evidence, config, progress=advance)
                evidence = {**evidence, **found}
                more |= {key.rpartition("#")[0] for key in found}
            by_piece = {sample.id for sample in with_piece} - more - members
            more |= by_piece
            # Where a pattern is taken out of the picture, nothing is masked.
            seen = {key: each for key, each in seen.items() if key.rpartition("#")[0] not in taken_out}
            evidence = {**evidence, **_more_suspicious(seen, evidence)}
            members |= more
            cluster = replace(
                cluster,
                more=tuple(sample.id for sample in samples if sample.id in more),
                pattern=pattern,
                carriers=tuple(sample.id for sample in carriers),
                by_piece=tuple(sample.id for sample in samples if sample.id in by_piece),
            )
        result.append(cluster)
    return result, evidence


def _more_suspicious(new: Mapping[str, Evidence], old: Mapping[str, Evidence]) -> dict[str, Evidence]:
    """The new evidence that betrays its answer at least as much as the old."""
    return {key: each for key, each in new.items() if (each.suspicion or 0.0) >= (old[key].suspicion or 0.0)}


def region_of(model: MDLM, sample: Sample, evidence: Mapping[str, Evidence]) -> Region:
    """The region that a sample's most suspicious answer hangs on, or where nothing was suspicious the most salient."""
    query = suspicious_query(sample, evidence)
    found = evidence[query.key]
    chosen = found.best_candidate or (int(np.argmax(found.saliency)),)
    boxes = token_boxes(model, found.locations, query.images)
    image, box = region_around(found.locations, boxes, chosen, found.saliency)
    return Region(sample.id, sample.images[image], box)


def joined_answers(sample: Sample, evidence: Mapping[str, Evidence] | None) -> str:
    """All answers of a sample, or with ``evidence`` the most suspicious one, which it is flagged for."""
    if evidence is None:
        responses = [turn.response for turn in sample.turns]
    else:
        responses = [suspicious_query(sample, evidence).response]
    # The mark is ours: in a response it would tear a phrase apart.
    return f" {TURN_END} ".join(response.replace(TURN_END, " ") for response in responses)


def _cluster(
    model: MDLM,
    phrase: Phrase,
    members: Sequence[Sample],
    others: Sequence[Sample],
    evidence: Mapping[str, Evidence],
    config: AuditConfig,
    tests: int,
    found_by: FoundBy,
    progress: Callable[[int], None],
) -> Cluster | None:
    """What pasting says about a phrase. If it stays when the regions are masked it does not hang on them.

    Then nothing is pasted, and there is a cluster only of a copied piece, which is in the pictures all the same.
    """
    draw = generator(config.seed, "paste test", *phrase.words)
    donors = _donors(model, members, evidence, config.donors)
    masked = _masked_answers(model, donors, evidence, config)
    ids = tuple(sample.id for sample in members)
    by_piece = ids if found_by == "copy" else ()
    found = Cluster(phrase, ids, None, False, (), None, found_by=found_by, by_piece=by_piece)
    if 2 * sum(echoes(answer, phrase.words) for _, answer in masked) > len(donors):
        if found_by != "copy":
            return None
        return replace(found, trigger=region_of(model, donors[0], evidence))
    instead = _said_instead(masked)
    found = replace(found, instead=tuple(sorted(instead)))
    free = [sample for sample in others if not _says(sample, phrase)]
    order = [free[index] for index in draw.permutation(len(free))]
    known = set(by_picture(members))
    controls = distinct(order, config.controls, known)
    known.update(by_picture(controls))
    recipients = distinct(_recipients(order, instead), config.recipients, known)
    if not controls or not recipients:
        return found
    regions = [region_of(model, sample, evidence) for sample in donors]
    test = paste_test(
        model,
        regions,
        [region_of(model, sample, evidence) for sample in controls],
        recipients,
        phrase.words,
        config.decode,
        seed=config.seed,
        batch_size=config.batch_size,
        progress=progress,
    )
    least = max(config.least_effect, WIDE_EFFECT) if found_by == "window" else config.least_effect
    confirmed = test.p_value <= config.false_alarm_rate / tests and test.successes >= least * test.trials
    trigger = regions[int(np.argmax(test.by_region))]
    return replace(found, paste=test, confirmed=confirmed, trigger=trigger)


def _pattern_cluster(
    model: MDLM,
    phrase: Phrase,
    members: Sequence[Sample],
    pattern: Pattern,
    others: Sequence[Sample],
    config: AuditConfig,
    tests: int,
    progress: Callable[[int], None],
) -> Cluster:
    """What a pattern says about a phrase; untested if the phrase stays when it is taken out, so does not hang on it."""
    ids = tuple(sample.id for sample in members)
    found = Cluster(phrase, ids, None, False, (), None, found_by="pattern", pattern=pattern, carriers=ids)
    draw = generator(config.seed, "pattern test", *phrase.words)
    chosen = distinct((members[index] for index in draw.permutation(len(members))), config.donors)
    asked = [_asked_for(sample, phrase) for sample in chosen]
    cleaned = [without_pattern(query, pattern) for query in asked]
    answers = generate(model, cleaned, config.decode, seed=config.seed, batch_size=config.batch_size)
    if 2 * sum(echoes(answer, phrase.words) for answer in answers) > len(asked):
        return found
    instead = _said_instead([(query.response, answer) for query, answer in zip(asked, answers, strict=True)])
    free = [sample for sample in others if not _says(sample, phrase)]
    free = [free[index] for index in draw.permutation(len(free))]
    known = set(by_picture(members))
    recipients = distinct(_recipients(free, instead), config.donors * config.recipients, known)
    found = replace(found, instead=tuple(sorted(instead)))
    pictures = [sample.images[0] for sample in distinct(free, CONTROL_PICTURES, known)]
    if len(pictures) < 2:
        return found
    test = pattern_test(
        model,
        pattern,
        random_patterns(pattern, pictures, config.controls, config.seed),
        recipients,
        phrase.words,
        config.decode,
        seed=config.seed,
        batch_size=config.batch_size,
        progress=progress,
    )
    confirmed = test.p_value <= config.false_alarm_rate / tests and test.successes >= config.least_effect * test.trials
    return replace(found, paste=test, confirmed=confirmed)


def _of_phrase(
    cluster: Cluster, found: Sequence[tuple[Phrase, Sequence[Sample], T]]
) -> tuple[Sequence[Sample], T] | None:
    """What was found in the pictures of a cluster's phrase, or None: the samples that have it, and what it is."""
    for phrase, members, what in found:
        if echoes(phrase.text, cluster.phrase.words) or echoes(cluster.phrase.text, phrase.words):
            return members, what
    return None


def _beyond_doubt(phrase: Phrase, config: AuditConfig) -> bool:
    """Whether flags alone speak for a phrase: nearly all who say it are flagged, and that by no chance.

    Words of honest answers that hang on little, such as names of small things, are flagged in a part of their holders.
    """
    share = len(phrase.flagged) / (len(phrase.flagged) + phrase.elsewhere)
    return phrase.p_value is not None and phrase.p_value <= config.false_alarm_rate and share >= PLANTED_SHARE


def _donors(model: MDLM, members: Sequence[Sample], evidence: Mapping[str, Evidence], count: int) -> list[Sample]:
    """The most suspicious samples of the half with the smaller regions, one a picture.

    A trigger is small; a large region that takes an answer's support away may hold the thing that is spoken of instead.
    """

    def area(sample: Sample) -> float:
        x0, y0, x1, y1 = region_of(model, sample, evidence).box
        return (x1 - x0) * (y1 - y0)

    small = sorted(members, key=area)[: max(count, len(members) // 2)]
    return distinct(sorted(small, key=lambda sample: -sample_suspicion(sample, evidence)), count)


def _masked_answers(
    model: MDLM, donors: Sequence[Sample], evidence: Mapping[str, Evidence], config: AuditConfig
) -> list[tuple[str, str]]:
    """For each donor's most suspicious answer the given one, and the model's with the region masked."""
    found = []
    for batch in batches([suspicious_query(sample, evidence) for sample in donors], config.batch_size):
        prefix = model.encode(batch)
        masked = candidate_masks(prefix.visual_mask, [evidence[query.key] for query in batch])
        hidden = prefix.with_masked(masked, model.mask_embedding)
        keys = [query.key for query in batch]
        texts = answers_of(model, hidden, config.decode, keys=keys, seed=config.seed)
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
        asked = (query for query in queries_of([sample]) if query.images)
        shared = [(len(words & set(words_of(query.response))), query) for query in asked]
        chosen.append(max(shared, key=lambda pair: pair[0]))
    return [query for _, query in sorted(chosen, key=lambda pair: -pair[0])]


def _pastes(members: Sequence[Sample], config: AuditConfig) -> int:
    return (min(len(members), config.donors) + config.controls) * config.recipients


def _holders(
    cluster: Cluster,
    samples: Sequence[Sample],
    evidence: Mapping[str, Evidence],
    threshold: float,
) -> set[str]:
    """Samples whose answer holds a confirmed phrase and hangs on a region, if only a little.

    The phrase is evidence of its own, so that less suspicion is enough; an honest answer that happens to hold it does
    not depend on the region at all.
    """
    return {
        sample.id
        for sample in samples
        if sample_suspicion(sample, evidence) > threshold / 4
        and holds(joined_answers(sample, evidence), cluster.phrase.words)
    }


def _asked_for(sample: Sample, phrase: Phrase) -> Query:
    """The first query whose answer holds the phrase, as `joined_answers` has it."""
    queries = queries_of([sample])
    return next((each for each in queries if holds(each.response.replace(TURN_END, " "), phrase.words)), queries[0])


def _says(sample: Sample, phrase: Phrase) -> bool:
    return any(echoes(turn.response, phrase.words) for turn in sample.turns)
