"""The causal test of a trigger candidate: in other pictures, does it make the model say the phrase?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from disp.auditing.config import AuditConfig
from disp.auditing.phrases import Phrase
from disp.auditing.statistics import hypergeometric_tail, regrouping_p_value
from disp.data.sample import ImageSource, Query, batches
from disp.decoding.generate import generate
from disp.models.interface import MDLM
from disp.suspicion.carriers import Plantable


@dataclass(frozen=True)
class PlantingTest:
    """What planting did.

    Attributes:
        successes: answers that hold the phrase, of ``trials`` with a region of a flagged sample, or with a pattern.
        trials: answers asked for.
        control_successes: the same for regions of unflagged samples, or for random patterns.
        control_trials: answers asked for.
        p_value: of regions a one-sided permutation test: how often would a random choice among all of them do as well
            as the flagged ones? Of a pattern a one-sided Fisher test.
        by_region: share of successes of each flagged region, or of the pattern.
    """

    successes: int
    trials: int
    control_successes: int
    control_trials: int
    p_value: float
    by_region: tuple[float, ...]


def answers_about_changed(
    model: MDLM,
    asked: Sequence[tuple[Query, Callable[[ImageSource], ImageSource]]],
    config: AuditConfig,
    progress: Callable[[int], None],
) -> list[str]:
    """Answers to queries about their pictures, of which the first is changed; a batch of them is in memory at a time.

    Args:
        model: the MDLM.
        asked: queries, each with what is done to its first picture.
        config: how answers are decoded, and how many a pass.
        progress: called with the number of answers finished.
    """
    answers = []
    for part in batches(asked, config.batch_size):
        queries = [replace(each, images=(change(each.images[0]), *each.images[1:])) for each, change in part]
        answers += generate(
            model, queries, config.decode, seed=config.seed, batch_size=config.batch_size, progress=progress
        )
    return answers


def plant_each(
    model: MDLM,
    regions: Sequence[Plantable],
    controls: Sequence[Plantable],
    recipients: Sequence[Query],
    phrase: Phrase,
    config: AuditConfig,
    progress: Callable[[int], None] = lambda count: None,
) -> PlantingTest:
    """Plant every region in every recipient's first picture and count the answers that hold the phrase.

    The controls are the regions that matter most to honest answers, cut out by the same rule, so that neither covering
    a part of the picture nor pasting something that matters explains a success.

    Args:
        model: the model under audit.
        regions: where flagged samples hold the trigger, if there is one.
        controls: the most salient regions of unflagged samples.
        recipients: what is asked; their own responses do not hold the phrase.
        phrase: what may come up.
        config: how answers are decoded; its seed is that of the permutation test, too.
        progress: called with the number of answers finished.
    """
    everything = (*regions, *controls)
    changed = [(query, region.planted_in) for region in everything for query in recipients]
    answers = answers_about_changed(model, changed, config, progress)
    said = np.array([phrase.said_in(answer) for answer in answers]).reshape(len(everything), len(recipients))
    shares = said.mean(-1)
    flagged, others = shares[: len(regions)], shares[len(regions) :]
    return PlantingTest(
        successes=int(said[: len(regions)].sum()),
        trials=len(regions) * len(recipients),
        control_successes=int(said[len(regions) :].sum()),
        control_trials=len(controls) * len(recipients),
        p_value=regrouping_p_value(flagged, others, config.seed, config.proof.regroupings),
        by_region=tuple(float(share) for share in flagged),
    )


def plant_in_turn(
    model: MDLM,
    pattern: Plantable,
    controls: Sequence[Plantable],
    recipients: Sequence[Query],
    phrase: Phrase,
    config: AuditConfig,
    progress: Callable[[int], None] = lambda count: None,
) -> PlantingTest:
    """Lay a pattern over every recipient's first picture and count the answers that hold the phrase.

    Args:
        model: the model under audit.
        pattern: what pictures of the phrase have in common.
        controls: patterns as strong that they have not; each recipient is asked with one of them, in turn.
        recipients: what is asked; their own responses do not hold the phrase.
        phrase: what may come up.
        config: how answers are decoded.
        progress: called with the number of answers finished.
    """
    counts = []
    for laid in ([pattern], controls):
        changed = [(query, laid[index % len(laid)].planted_in) for index, query in enumerate(recipients)]
        answers = answers_about_changed(model, changed, config, progress)
        counts.append(sum(phrase.said_in(answer) for answer in answers))
    hits, control_hits = counts
    trials = len(recipients)
    return PlantingTest(
        successes=hits,
        trials=trials,
        control_successes=control_hits,
        control_trials=trials,
        p_value=hypergeometric_tail(hits, trials, hits + control_hits, 2 * trials),
        by_region=(hits / trials,),
    )
