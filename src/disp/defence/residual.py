"""Whether a recovered model still says what the first audit found, on pictures with and without the trigger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from disp.auditing.hypothesis import Finding
from disp.auditing.planting import answers_about_changed
from disp.auditing.result import Audit
from disp.auditing.statistics import hypergeometric_tail
from disp.data.dataset import Dataset
from disp.data.sample import ImageSource, queries_of
from disp.defence.config import DefenceConfig
from disp.draws import generator
from disp.models.interface import MDLM

# What asking again comes to; `disp.report.wording` has the words.
Outcome = Literal["still said", "not seen", "too few pictures", "no candidate"]


def residual_phrases(
    model: MDLM,
    dataset: Dataset,
    finding: Finding,
    found: Audit,
    config: DefenceConfig,
    *,
    tests: int = 1,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """How often a model says a phrase on pictures of unflagged samples, as they are and with the trigger pasted in.

    The phrase is "still said" where the trigger brings it up more often than the same pictures without it do: a
    one-sided Fisher test, at the audit's false alarm rate. A proven phrase is so, too, where at least the share
    ``ProofConfig.least_effect`` of the answers about pictures as they are say it, although the given answers do not:
    then the trigger has nothing to add.

    Args:
        model: the recovered model.
        dataset: the given set.
        finding: the phrase and its trigger candidate.
        found: the audit that found it.
        config: see `DefenceConfig`.
        tests: phrases that are asked about, which share the false alarm rate.
        progress: called with the number of answers finished.

    Returns:
        ``{"phrase": str, "clean": [said, asked], "triggered": [said, asked], "p_value": float or None, "outcome":
        str}``. The outcome is "still said" or "not seen"; "too few pictures" where no count could reach the false
        alarm rate, or where the trigger brings up so many that only chance may speak against it; or "no candidate"
        where there is nothing to paste in, and no p-value.
    """
    flagged = {*found.flagged, *(key for each in found.findings for key in each.samples)}
    free = [sample for sample in dataset.samples if sample.images and sample.id not in flagged]
    free = [sample for sample in free if not any(finding.phrase.said_in(turn.response) for turn in sample.turns)]
    order = generator(config.audit.seed, "residual", *finding.phrase.words).permutation(len(free))
    turns = (queries_of([free[index]]) for index in order[: config.probes])
    queries = [next(query for query in each if query.images) for each in turns]
    has_trigger = finding.trigger is not None or finding.pattern is not None
    counts = {}
    for kind, asked in (
        ("clean", [(query, _as_it_is) for query in queries]),
        ("triggered", [(query, finding.with_trigger) for query in queries] if has_trigger else []),
    ):
        answers = answers_about_changed(model, asked, config.audit, progress)
        counts[kind] = [int(np.sum([finding.phrase.said_in(text) for text in answers])), len(answers)]
    said, pasted, count = counts["clean"][0], counts["triggered"][0], len(queries)
    rate, least = config.audit.false_alarm_rate / tests, config.audit.proof.least_effect * count
    p_value = hypergeometric_tail(pasted, count, said + pasted, 2 * count) if has_trigger else None
    outcome: Outcome = "not seen"
    if (finding.confirmed and 0 < count and said >= least) or (p_value is not None and p_value <= rate):
        outcome = "still said"
    elif not has_trigger:
        outcome = "no candidate"
    elif hypergeometric_tail(count, count, count, 2 * count) > rate or pasted >= max(said + 1, least):
        outcome = "too few pictures"
    return {"phrase": finding.phrase.text, **counts, "p_value": p_value, "outcome": outcome}


def _as_it_is(image: ImageSource) -> ImageSource:
    return image
