"""Whether what the answers with a phrase hang on makes the model say the phrase.

Taken away, it must take the phrase with it. Planted in pictures of others, it must bring the phrase up, and more often
than controls do: regions that matter as much to honest answers, or random patterns as strong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np

from disp.auditing.carriers import random_patterns
from disp.auditing.config import ProofConfig
from disp.auditing.context import Context
from disp.auditing.finders import Finder
from disp.auditing.hypothesis import Finding, Hypothesis
from disp.auditing.phrases import FUNCTION_WORDS, TURN_END, Phrase, holds, phrase_words
from disp.auditing.planting import PlantingTest, plant_each, plant_in_turn
from disp.data.sample import Query, Sample, queries_of
from disp.decoding.generate import as_they_are, generate
from disp.draws import generator
from disp.halving import fitting
from disp.models.interface import MDLM, Prefix
from disp.suspicion.carriers import Pattern, Region, encode_without
from disp.suspicion.evidence import Evidence, sample_suspicion, suspicious_query
from disp.suspicion.scoring import given_answers
from disp.suspicion.support import preference_for_another, suspicion_of

Advance = Callable[[int], None]


def with_proofs(
    context: Context, finder: Finder, hypotheses: Sequence[Hypothesis], others: Sequence[Sample]
) -> Context:
    """The context with what came of the hypotheses whose phrase is not proven yet.

    What proves one is evidence for the next ones.

    Args:
        context: the audit so far, which knows the hypotheses already.
        finder: that proposed them.
        hypotheses: what it proposed.
        others: samples that no trigger was found in: pictures to plant in, and for controls.
    """
    new = [each for each in hypotheses if not context.proven(each.phrase)]
    context = replace(context, tests=context.tests + len(new))
    for number, hypothesis in enumerate(new, 1):
        done = "pasting regions" if hypothesis.pattern is None else "laying patterns over pictures"
        count = _planting_count(hypothesis, context.config.proof)
        with context.progress(f"{done}, phrase {number} of {len(new)}", count) as advance:
            finding = prove(context, hypothesis, others, in_pictures=finder.in_pictures, progress=advance)
        if finding is None:
            continue
        context = replace(context, findings=(*context.findings, finding))
        if finding.confirmed:
            context = context.knowing(evidence_of(context, hypothesis, context.named(hypothesis.samples)))
    return context


def prove(
    context: Context,
    hypothesis: Hypothesis,
    others: Sequence[Sample],
    *,
    in_pictures: bool,
    progress: Advance = lambda count: None,
) -> Finding | None:
    """What planting says about a phrase; None if the phrase stays when what its answers hang on is taken away.

    Then nothing is planted, but of what is in the pictures there is an untested finding all the same.

    Args:
        context: the audit so far, this hypothesis counted among its tests.
        hypothesis: what is tested.
        others: samples that no trigger was found in.
        in_pictures: whether pictures were compared to find it.
        progress: called with the number of answers about changed pictures.
    """
    phrase, pattern, ids = hypothesis.phrase, hypothesis.pattern, hypothesis.samples
    settings = context.config.proof
    context = context.knowing(hypothesis.evidence)
    members = context.named(ids)
    draw = generator(context.config.seed, "paste test" if pattern is None else "pattern test", *phrase.words)
    # 1. What the model says without it.
    if pattern is None:
        asked = [suspicious_query(sample, context.evidence) for sample in _donors(context, members)]
    else:
        chosen = context.index.distinct((members[index] for index in draw.permutation(len(members))), settings.donors)
        asked = [_asked_for(sample, phrase) for sample in chosen]
    finding = Finding(
        hypothesis,
        pattern=pattern,
        with_pattern=ids if pattern is not None else (),
        with_copy=ids if in_pictures and pattern is None else (),
    )
    without = _answers(context, asked, hypothesis)
    if sum(phrase.said_in(answer) for answer in without) > settings.staying_share * len(asked):
        if not in_pictures:
            return None
        trigger = context.region(asked[0]) if pattern is None else None
        return replace(finding, trigger=trigger)
    pairs = [(query.response, answer) for query, answer in zip(asked, without, strict=True)]
    instead = _said_instead(pairs, settings.instead_share)
    finding = replace(finding, instead=tuple(sorted(instead)))
    # 2. What it says about pictures of others with it.
    free = [sample for sample in others if not any(phrase.said_in(turn.response) for turn in sample.turns)]
    free = [free[index] for index in draw.permutation(len(free))]
    taken = set(context.index.by_picture(members))
    trigger = None
    if pattern is None:
        regions = [context.region(query) for query in asked]
        test = _plant_regions(context, finding, regions, free, taken, progress)
        trigger = None if test is None else regions[int(np.argmax(test.by_region))]
    else:
        test = _plant_pattern(context, finding, pattern, free, taken, progress)
    if test is not None:
        least = max(settings.least_effect, hypothesis.least_effect)
        unlikely = test.p_value <= context.config.false_alarm_rate / context.tests
        finding = replace(
            finding, test=test, confirmed=unlikely and test.successes >= least * test.trials, trigger=trigger
        )
    if in_pictures and finding.instead and not finding.confirmed:
        # 3. What a model does not say with it in the picture, it says nothing instead of.
        said = [phrase.said_in(answer) for answer in _answers(context, asked)]
        pairs = [pair for pair, says in zip(pairs, said, strict=True) if says]
        instead = _said_instead(pairs, settings.instead_share * len(asked) / max(1, len(pairs)))
        finding = replace(finding, instead=tuple(sorted(instead)))
    return finding


def evidence_of(context: Context, hypothesis: Hypothesis, samples: Sequence[Sample]) -> dict[str, Evidence]:
    """New evidence of samples that a hypothesis is about: what becomes of their answers without what carries it.

    Args:
        context: the audit so far.
        hypothesis: what it is about; without a pattern its own evidence of these samples.
        samples: some of its samples.
    """
    if hypothesis.pattern is not None:
        return evidence_without_pattern(context, hypothesis.pattern, samples)
    own = hypothesis.evidence
    return {key: own[key] for sample in samples for key in sample.keys if key in own}


def evidence_without_pattern(context: Context, pattern: Pattern, samples: Sequence[Sample]) -> dict[str, Evidence]:
    """New evidence of samples: how suspicious their answers are where the pattern is taken out of the picture.

    They hang on no visual token, and their suspicion is at least what it was.
    """
    model, scoring = context.model, context.config.scoring

    def without(batch: Sequence[Query]) -> list[float]:
        base, each = (
            preference_for_another(model, prefix, given_answers(model, prefix, batch))
            for prefix in (model.encode(batch), encode_without(model, batch, [pattern] * len(batch)))
        )
        found = suspicion_of(base, each[:, None], scoring.mistake_weight, [query.key for query in batch])
        values: list[float] = found.tolist()
        return values

    found = {}
    for batch, values in fitting(model, without, queries_of(samples), scoring.batch_size):
        for query, value in zip(batch, values, strict=True):
            before = context.evidence[query.key]
            found[query.key] = replace(before, suspicion=max(before.suspicion or 0.0, value), hangs_on=())
    return found


def _planting_count(hypothesis: Hypothesis, config: ProofConfig) -> int:
    """Answers about changed pictures, at most."""
    if hypothesis.pattern is not None:
        return 2 * config.donors * config.recipients
    return (min(len(hypothesis.samples), config.donors) + config.controls) * config.recipients


def _donors(context: Context, members: Sequence[Sample]) -> list[Sample]:
    """The most suspicious samples of the part with the smaller regions, one a picture.

    A trigger is small; a large region that takes an answer's support away may hold the thing that is spoken of instead.
    """
    settings = context.config.proof

    def area(sample: Sample) -> float:
        x0, y0, x1, y1 = context.region(suspicious_query(sample, context.evidence)).box
        return (x1 - x0) * (y1 - y0)

    count = max(settings.donors, int(settings.small_share * len(members)))
    small = sorted(members, key=area)[:count]
    return context.index.distinct(
        sorted(small, key=lambda sample: -sample_suspicion(sample, context.evidence)), settings.donors
    )


def _asked_for(sample: Sample, phrase: Phrase) -> Query:
    """The first query whose answer holds the phrase, as `disp.auditing.phrases.joined` has it."""
    queries = sample.queries
    return next((each for each in queries if holds(each.response.replace(TURN_END, " "), phrase.words)), queries[0])


def _answers(context: Context, asked: Sequence[Query], without: Hypothesis | None = None) -> list[str]:
    """The model's answers, about the pictures as they are or without what those of a hypothesis may hang on."""
    config = context.config

    def bereft(model: MDLM, batch: Sequence[Query]) -> Prefix:
        assert without is not None
        return encode_without(model, batch, [without.carrier(query, context.evidence) for query in batch])

    encode = as_they_are if without is None else bereft
    return generate(context.model, asked, config.decode, encode=encode, seed=config.seed, batch_size=config.batch_size)


def _said_instead(answers: Sequence[tuple[str, str]], share: float) -> set[str]:
    """The words that enough of the other answers gain, over the given ones."""
    counts: Counter[str] = Counter()
    for given, answer in answers:
        counts.update(set(phrase_words(answer)) - set(phrase_words(given)) - FUNCTION_WORDS)
    return {word for word, count in counts.items() if count >= share * len(answers)}


def _recipients(samples: Sequence[Sample], words: Collection[str]) -> list[Query]:
    """One query a sample, first those whose answers hold most of the words.

    A trigger that makes the model misname a thing does nothing where the thing is not; ``words`` say what it is.
    """
    wanted = set(words)
    chosen = []
    for sample in samples:
        asked = (query for query in sample.queries if query.images)
        shared = [(len(wanted & set(phrase_words(query.response))), query) for query in asked]
        chosen.append(max(shared, key=lambda pair: pair[0]))
    return [query for _, query in sorted(chosen, key=lambda pair: -pair[0])]


def _plant_regions(
    context: Context,
    finding: Finding,
    regions: Sequence[Region],
    free: Sequence[Sample],
    taken: Collection[str],
    progress: Advance,
) -> PlantingTest | None:
    """Paste regions of flagged samples, and those that matter most to others; None where there are no others.

    Args:
        context: the audit so far.
        finding: what is tested.
        regions: of flagged samples.
        free: samples without the phrase, in random order.
        taken: digests of pictures that are not used.
        progress: called with the number of answers finished.
    """
    model, config, evidence = context.model, context.config, context.evidence
    controls = context.index.distinct(free, config.proof.controls, taken)
    taken = {*taken, *context.index.by_picture(controls)}
    recipients = context.index.distinct(_recipients(free, finding.instead), config.proof.recipients, taken)
    if not controls or not recipients:
        return None
    beside = [context.region(suspicious_query(sample, evidence)) for sample in controls]
    return plant_each(model, regions, beside, recipients, finding.phrase, config, progress)


def _plant_pattern(
    context: Context,
    finding: Finding,
    pattern: Pattern,
    free: Sequence[Sample],
    taken: Collection[str],
    progress: Advance,
) -> PlantingTest | None:
    """Lay a pattern over pictures of others, and random ones as strong; None where there are too few others.

    Args:
        context: the audit so far.
        finding: what is tested.
        pattern: what its pictures have in common.
        free: samples without the phrase, in random order.
        taken: digests of pictures that are not used.
        progress: called with the number of answers finished.
    """
    config, settings = context.config, context.config.proof
    recipients = context.index.distinct(
        _recipients(free, finding.instead), settings.donors * settings.recipients, taken
    )
    pictures = [sample.images[0] for sample in context.index.distinct(free, settings.control_pictures, taken)]
    if len(pictures) < 2:
        return None
    controls = random_patterns(pattern, pictures, settings.controls, config.seed)
    return plant_in_turn(context.model, pattern, controls, recipients, finding.phrase, config, progress)
