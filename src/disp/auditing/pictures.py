"""What pictures of one phrase have in common, and whether it makes the model say the phrase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from disp.auditing import copies, patterns
from disp.auditing.clusters import (
    already_proven,
    joined_answers,
    pattern_clusters,
    pattern_evidence,
    tested_clusters,
)
from disp.auditing.findings import AuditConfig, Cluster
from disp.auditing.phrases import Phrase, echoes
from disp.data.sample import Sample
from disp.models.interface import MDLM
from disp.progress import ProgressBar
from disp.purification.pattern import Pattern
from disp.suspicion.scoring import Evidence


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
    seed, answers = config.seed, [joined_answers(sample, None) for sample in samples]
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
    # 3. A trigger of another kind, or one that is not learnt, may betray more rows of a proven phrase.
    proven = []
    for cluster in found:
        joined, seen = _with_rows_of_the_other(model, cluster, shared, copied, evidence, config)
        evidence = {**evidence, **seen}
        proven.append(joined)
    # 4. What has not come into the model is in the data all the same.
    betrayed: list[Pattern | Mapping[str, Evidence]] = [pattern for _, _, pattern in new_shared]
    betrayed += [seen for _, _, seen in new_copied]
    pairs = zip([*tested, *more], betrayed, strict=True)
    untaught = [pair for pair in pairs if not already_proven(pair[0].phrase, proven)]
    unlearnt = _unlearnt(model, untaught, samples, evidence, config)
    return InPictures(tuple(proven), unlearnt, tuple(shared), tuple(copied), tests), evidence


def _with_rows_of_the_other(
    model: MDLM,
    cluster: Cluster,
    shared: Sequence[tuple[Phrase, Sequence[Sample], Pattern]],
    copied: Sequence[tuple[Phrase, Sequence[Sample], Mapping[str, Evidence]]],
    evidence: Mapping[str, Evidence],
    config: AuditConfig,
) -> tuple[Cluster, dict[str, Evidence]]:
    """A proven cluster with the rows of its phrase that the search which did not find it found, and their evidence."""
    rest: list[Sample]
    known = set(cluster.samples)
    if cluster.found_by == "copy":
        for phrase, members, pattern in shared:
            rest = [sample for sample in members if sample.id not in known]
            if rest and echoes(phrase.text, cluster.phrase.words):
                ids = tuple(sample.id for sample in rest)
                seen = pattern_evidence(model, rest, pattern, evidence, config)
                return replace(cluster, more=ids, pattern=pattern, carriers=ids), seen
        return cluster, {}
    found: dict[str, Evidence] = {}
    for phrase, members, masked in copied:
        rest = [sample for sample in members if sample.id not in known]
        if rest and echoes(phrase.text, cluster.phrase.words):
            ids = tuple(sample.id for sample in rest)
            known.update(ids)
            found |= _of_samples(masked, ids)
            cluster = replace(cluster, more=(*cluster.more, *ids), by_piece=(*cluster.by_piece, *ids))
    return cluster, found


def _unlearnt(
    model: MDLM,
    found: Sequence[tuple[Cluster, Pattern | Mapping[str, Evidence]]],
    samples: Sequence[Sample],
    evidence: Mapping[str, Evidence],
    config: AuditConfig,
) -> tuple[tuple[Cluster, Mapping[str, Evidence]], ...]:
    """Unconfirmed clusters and what was seen; of one phrase first what more of its pictures have.

    Another of that phrase is named beside it if it has rows of its own, and it is these that are answered again in its
    way. Of equals the pattern comes first, to be taken out.

    Args:
        model: the model under audit.
        found: clusters, and the pattern or the evidence that masking the piece gave; patterns first.
        samples: all samples with an image.
        evidence: of every turn.
        config: see `AuditConfig`.
    """
    taken: dict[tuple[str, ...], set[str]] = {}
    kept = []
    for cluster, what in sorted(found, key=lambda each: -len(each[0].samples)):
        before = taken.setdefault(cluster.phrase.words, set())
        own = tuple(key for key in cluster.samples if key not in before)
        if not own:
            continue
        these = set(own)
        before |= these
        if not isinstance(what, Pattern):
            kept.append((replace(cluster, by_piece=own), _of_samples(what, own)))
            continue
        # Where only what is learnt counts nobody asks for it.
        members = [] if config.learnt_only else [sample for sample in samples if sample.id in these]
        seen = pattern_evidence(model, members, what, evidence, config)
        kept.append((replace(cluster, carriers=own), seen))
    return tuple(kept)


def _of_samples(evidence: Mapping[str, Evidence], ids: Sequence[str]) -> dict[str, Evidence]:
    """The evidence of the turns of these samples."""
    wanted = set(ids)
    return {key: each for key, each in evidence.items() if key.rpartition("#")[0] in wanted}


def _without(samples: Sequence[Sample], groups: Sequence[Sequence[Sample]]) -> list[Sample]:
    """The samples that are in none of the groups."""
    inside = {sample.id for group in groups for sample in group}
    return [sample for sample in samples if sample.id not in inside]
