"""What pictures of one phrase have in common, and whether it makes the model say the phrase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from disp.auditing import copies, patterns
from disp.auditing.clusters import (
    already_proven,
    joined_answers,
    pattern_clusters,
    pattern_evidence,
    tested_clusters,
)
from disp.auditing.findings import AuditConfig, Cluster
from disp.auditing.phrases import Phrase
from disp.data.sample import Sample
from disp.models.interface import MDLM
from disp.progress import ProgressBar
from disp.purification.pattern import Pattern
from disp.purification.scoring import Evidence


@dataclass(frozen=True)
class InPictures:
    """What was found in the pictures.

    Attributes:
        clusters: phrases that what their pictures have in common makes the model say, and that were not proven before.
        unlearnt: phrases whose pictures have something in common that does not make the model say them, and the
            evidence that masking it, or taking it out, gave; of a pattern none with ``learnt_only``.
        patterns: every phrase whose pictures share a pattern, the samples that hold it and have the pattern, and it.
        pieces: the same of pieces at places of their own, and the evidence that masking the piece gave.
        tests: how many phrases were tested.
    """

    clusters: tuple[Cluster, ...]
    unlearnt: tuple[tuple[Cluster, Mapping[str, Evidence]], ...]
    patterns: tuple[tuple[Phrase, Sequence[Sample], Pattern], ...]
    pieces: tuple[tuple[Phrase, Sequence[Sample], Mapping[str, Evidence]], ...]
    tests: int


def look_at_pictures(
    model: MDLM,
    samples: Sequence[Sample],
    clusters: Sequence[Cluster],
    evidence: dict[str, Evidence],
    config: AuditConfig,
    tests: int,
    progress: ProgressBar,
) -> tuple[InPictures, dict[str, Evidence]]:
    """Look for patterns and pieces, and test the phrases that are not proven yet.

    Args:
        model: the model under audit.
        samples: all samples with an image.
        clusters: what was found before.
        evidence: of every turn.
        config: see `AuditConfig`.
        tests: how many phrases were tested before, which p-values are corrected for as well.
        progress: see `disp.progress`.

    Returns:
        What was found, and the evidence with what masking or taking out the proven ones did.
    """
    seed, answers = config.scoring.seed, [joined_answers(sample, None) for sample in samples]
    # 1. A pattern at one place of all of them.
    with progress("comparing pictures", min(len(samples), patterns.PICTURES)) as advance:
        alike = patterns.shared_patterns(samples, answers, seed=seed, progress=advance)
    shared = [(phrase, [samples[index] for index in phrase.flagged], pattern) for phrase, pattern in alike]
    plain = _without(samples, [members for _, members, _ in shared])
    new_shared = [each for each in shared if not already_proven(each[0], clusters)]
    tests += len(new_shared)
    tested, evidence = pattern_clusters(model, new_shared, plain, evidence, config, tests, progress)
    found = [cluster for cluster in tested if cluster.confirmed]
    # 2. A piece at a place of its own in each.
    with progress("looking for copied pieces", min(len(samples), copies.PICTURES)) as advance:
        pieces = copies.copied_pieces(samples, answers, seed=seed, progress=advance)
    copied = []
    for phrase, boxes in pieces:
        having = [samples[index] for index in boxes]
        seen = copies.piece_evidence(model, having, list(boxes.values()), phrase, evidence, config.scoring)
        copied.append((phrase, having, seen))
    plain = _without(plain, [having for _, having, _ in copied])
    new_copied = [each for each in copied if not already_proven(each[0], (*clusters, *found))]
    tests += len(new_copied)
    more, evidence = tested_clusters(model, new_copied, plain, evidence, config, tests, "copy", progress)
    found += [cluster for cluster in more if cluster.confirmed]
    # 3. What has not come into the model is in the data all the same.
    new_shared = [each for each in new_shared if not already_proven(each[0], found)]
    new_copied = [each for each in new_copied if not already_proven(each[0], found)]
    unlearnt = _unlearnt(model, new_shared, new_copied, [*tested, *more], evidence, config)
    return InPictures(tuple(found), unlearnt, tuple(shared), tuple(copied), tests), evidence


def _unlearnt(
    model: MDLM,
    shared: Sequence[tuple[Phrase, Sequence[Sample], Pattern]],
    copied: Sequence[tuple[Phrase, Sequence[Sample], Mapping[str, Evidence]]],
    tested: Sequence[Cluster],
    evidence: Mapping[str, Evidence],
    config: AuditConfig,
) -> tuple[tuple[Cluster, Mapping[str, Evidence]], ...]:
    """Unconfirmed clusters, one a phrase, of what more of its pictures have; of equals the pattern, to be taken out."""
    known = {(cluster.found_by, cluster.phrase.words): cluster for cluster in tested}
    found = [(known["copy", phrase.words], seen) for phrase, _, seen in copied]
    for phrase, members, pattern in shared:
        # Where only what is learnt counts nobody asks for it.
        seen = {} if config.learnt_only else pattern_evidence(model, members, pattern, evidence, config)
        found.append((known["pattern", phrase.words], seen))
    found.sort(key=lambda each: len(each[0].samples))
    return tuple({each[0].phrase.words: each for each in found}.values())


def _without(samples: Sequence[Sample], groups: Sequence[Sequence[Sample]]) -> list[Sample]:
    """The samples that are in none of the groups."""
    inside = {sample.id for group in groups for sample in group}
    return [sample for sample in samples if sample.id not in inside]
