"""Who else says a proven phrase: whose pictures have its trigger, who lose it with more masked, and all who say it.

Suspicion masks little, because larger masks hide things and make honest answers flip. Once a phrase is proven planted,
only those who say it are in question, and what must happen under a larger mask is known: the phrase goes away and,
where a thing is misnamed, its right name appears. Of a sentence that recurs whatever is asked nothing must happen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from disp.auditing.config import AuditConfig
from disp.auditing.context import Context
from disp.auditing.hypothesis import Finding, Hypothesis
from disp.auditing.merging import in_pictures
from disp.auditing.phrases import holds, joined, phrase_words
from disp.auditing.proof import evidence_of
from disp.data.sample import Query, Sample, queries_of
from disp.decoding.generate import answers_of
from disp.models.interface import MDLM
from disp.scale.workers import ALONE, Workers
from disp.suspicion.evidence import Evidence, salient_masks, sample_suspicion, suspicious_query
from disp.suspicion.scoring import suspicion_under


def extended(context: Context) -> Context:
    """The context with who else says a proven phrase, and the evidence that betrayed these.

    Who has a phrase's pattern or copy in the picture is planted without more ado; a phrase that was found in pictures
    is planted in nobody else.
    """
    claimed = {key for finding in context.findings for key in finding.samples}
    result = []
    for finding in context.findings:
        if finding.confirmed and not in_pictures(finding.hypothesis):
            context, finding = _with_other_holders(context, finding, claimed)
            claimed.update(finding.more)
        result.append(finding)
    return replace(context, findings=tuple(result))


def with_all_who_say(context: Context) -> Context:
    """The context with all who say a sentence that recurs whatever is asked, in one finding for each sentence.

    Whatever else speaks for the sentence, whoever says it has no cause to. That is the first finding of it which was
    found otherwise; where there is none, the sentence is a finding of its own.
    """
    claimed = {key for each in context.findings if each.found_by != "unasked" for key in each.all_samples}
    told: list[Hypothesis] = []
    result = []
    for finding in sorted(context.findings, key=lambda each: each.found_by == "unasked"):
        sentence = context.unasked(finding.phrase)
        if sentence is not None and finding.found_by != "unasked":
            # Where questions tell nothing, the pictures alone say who has cause to say it.
            everyone = not finding.confirmed or sentence.p_value is not None
            own = tuple(key for key in sentence.samples if key not in claimed) if everyone else ()
            claimed.update(own)
            told.append(sentence)
            finding = replace(finding, more=(*finding.more, *own), by_sentence=own)
        if finding.hypothesis not in told:
            result.append(finding)
    return replace(context, findings=tuple(result))


def _with_other_holders(context: Context, finding: Finding, claimed: set[str]) -> tuple[Context, Finding]:
    """A proven finding with who else says its phrase, of those that no finding has claimed."""
    config, phrase = context.config, finding.phrase
    shared = _in_pictures(context, finding, with_pattern=True)
    copied = _in_pictures(context, finding, with_pattern=False)
    left = [sample for key, sample in context.samples.items() if key not in claimed]
    # 1. Whose pictures have the pattern.
    having = set() if shared is None else set(shared.samples)
    taken_out = [sample for sample in left if sample.id in having]
    if shared is not None:
        context = context.knowing(evidence_of(context, shared, taken_out))
    more = {sample.id for sample in taken_out}
    # 2. Who loses the phrase. Where the pictures tell who is planted, the model is not asked who else might be.
    told = having | (set() if copied is None else set(copied.samples))
    if sum(key in told for key in finding.samples) < config.extension.told_share * len(finding.samples):
        more |= _hanging_on_little(context, [sample for sample in left if sample.id not in more], finding)
        left = [sample for sample in left if sample.id not in more]
        with context.progress(f"looking for more that say {phrase.text[:40]!r}", len(left)) as advance:
            found = planted_holders(
                context.model,
                left,
                finding,
                context.evidence,
                config,
                file=None if context.folder is None else context.folder / _file_of(finding),
                workers=context.workers,
                progress=advance,
            )
        context = context.knowing(found)
        more |= context.index.ids_of(found)
    # 3. Whose pictures have the copy.
    with_copy: set[str] = set()
    if copied is not None:
        with_copy = set(copied.samples) - more - claimed
        # Where a pattern is taken out of the picture, nothing is masked.
        masked = [key for key in copied.samples if key not in {sample.id for sample in taken_out}]
        context = context.knowing(_more_suspicious(evidence_of(context, copied, context.named(masked)), context))
    more |= with_copy
    finding = replace(
        finding,
        more=tuple(key for key in context.samples if key in more),
        pattern=None if shared is None else shared.pattern,
        with_pattern=tuple(sample.id for sample in taken_out),
        with_copy=tuple(key for key in context.samples if key in with_copy),
    )
    return context, finding


@dataclass(frozen=True)
class Holder:
    """One turn whose answer holds a proven phrase.

    Attributes:
        query: the turn.
        own: its evidence.
    """

    query: Query
    own: Evidence

    @property
    def key(self) -> str:
        """That of the query."""
        return self.query.key


def planted_holders(
    model: MDLM,
    samples: Sequence[Sample],
    finding: Finding,
    evidence: Mapping[str, Evidence],
    config: AuditConfig,
    *,
    file: Path | None = None,
    workers: Workers = ALONE,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Evidence]:
    """Answers that hold a proven phrase, and lose it when more of the most salient tokens are masked.

    A short phrase may be honest: it counts only where one of `Finding.instead` takes its place.

    Args:
        model: the model under audit.
        samples: those to look through.
        finding: of a phrase that was proven.
        evidence: of every turn.
        config: how samples are scored and answers decoded, and how much is masked.
        file: JSONL file that results are appended to; turns that it holds are not asked for again.
        workers: who asks; see `disp.scale`.
        progress: called with the number of answers finished.

    Returns:
        New evidence by key: the tokens that were masked when the phrase went, and the suspicion under that mask.
    """
    phrase = finding.phrase
    found: dict[str, Evidence] = {}
    left: list[Query] = []
    if phrase.long or finding.instead:
        left = [query for query in queries_of(samples) if query.images and holds(query.response, phrase.words)]
        # Where an answer is longer than the response slots, what comes after them is never said.
        said = model.decode_responses(
            model.encode_responses([query.response for query in left], model.slots_of_pass(), cut=True)
        )
        left = [query for query, text in zip(left, said, strict=True) if holds(text, phrase.words)]

    def keep(row: dict[str, Any]) -> None:
        if row["hangs_on"] is not None:
            own = evidence[row["key"]]
            found[own.key] = replace(own, suspicion=row["suspicion"], hangs_on=tuple(row["hangs_on"]))

    # What a worker is sent need not hold what other turns are known by.
    alone = replace(finding, hypothesis=replace(finding.hypothesis, evidence={}))
    workers.work(
        model,
        [Holder(query, evidence[query.key]) for query in left],
        partial(hold_batch, finding=alone, config=config),
        size=config.scoring.batch_size,
        file=file,
        keep=keep,
        progress=progress,
    )
    return found


def hold_batch(model: MDLM, batch: Sequence[Holder], *, finding: Finding, config: AuditConfig) -> list[dict[str, Any]]:
    """Under which mask each answer of a batch loses the phrase, if under any, as lines of `planted_holders`' file.

    Args:
        model: the model under audit.
        batch: the turns, whose answers hold the phrase.
        finding: which phrase.
        config: the ratios that are tried, scoring and decoding.

    Returns:
        One row a turn: ``suspicion`` in nats and ``hangs_on``, the indices of the visual tokens that were masked; both
        None where no mask takes the phrase away.

    Raises:
        DispError: the model's numbers overflow.
    """
    scoring, queries = config.scoring, [each.query for each in batch]
    evidence = {each.key: each.own for each in batch}
    rows: dict[str, dict[str, Any]] = {key: {"key": key, "suspicion": None, "hangs_on": None} for key in evidence}
    prefix = model.encode(queries)
    masks = [salient_masks(queries, prefix.visual_mask, evidence, ratio) for ratio in config.extension.ratios]
    suspicion = suspicion_under(model, prefix, queries, torch.stack(masks, dim=1), scoring)
    for masked, values in zip(masks, suspicion.unbind(1), strict=True):
        # Where the model does not say it in the first place, masking proves nothing.
        asked = [
            place
            for place, query in enumerate(queries)
            if rows[query.key]["hangs_on"] is None and values[place] > scoring.least_suspicion
        ]
        if not asked:
            continue
        index = torch.tensor(asked, device=masked.device)
        hidden = prefix.select(index).with_masked(masked[index], model.mask_embedding)
        keys = [queries[place].key for place in asked]
        answers = answers_of(model, hidden, config.decode, keys=keys, seed=config.seed)
        for place, answer in zip(asked, answers, strict=True):
            query = queries[place]
            if gives_way(finding, query.response, answer):
                tokens = masked[place, prefix.visual_mask[place]].nonzero()[:, 0].tolist()
                rows[query.key] |= {"suspicion": float(values[place]), "hangs_on": tokens}
    return list(rows.values())


def _file_of(finding: Finding) -> str:
    """The name of the file of `planted_holders`; each phrase has its own."""
    return f"holders-{hashlib.sha256(json.dumps(finding.phrase.words).encode()).hexdigest()[:8]}.jsonl"


def gives_way(finding: Finding, given: str, answer: str) -> bool:
    """Whether a phrase that the given answer holds is gone from another one, and its right name, if any, is there."""
    if finding.phrase.said_in(answer):
        return False
    gained = set(phrase_words(answer)) - set(phrase_words(given))
    return finding.phrase.long or bool(gained & set(finding.instead))


def _in_pictures(context: Context, finding: Finding, *, with_pattern: bool) -> Hypothesis | None:
    """What was found in the pictures of a finding's phrase, a pattern or a copy, or None."""
    for each in context.hypotheses:
        if not in_pictures(each) or (each.pattern is not None) != with_pattern:
            continue
        if finding.phrase.said_in(each.phrase.text) or each.phrase.said_in(finding.phrase.text):
            return each
    return None


def _hanging_on_little(context: Context, samples: Sequence[Sample], finding: Finding) -> set[str]:
    """Ids of samples whose answer holds the phrase and hangs on a region, if only a little.

    The phrase is evidence of its own, so that less suspicion is enough; an honest answer that happens to hold it does
    not depend on the region at all.
    """
    least = context.config.extension.threshold_share * context.threshold
    return {
        sample.id
        for sample in samples
        if sample_suspicion(sample, context.evidence) > least
        and holds(joined([suspicious_query(sample, context.evidence).response]), finding.phrase.words)
    }


def _more_suspicious(new: Mapping[str, Evidence], context: Context) -> dict[str, Evidence]:
    """The new evidence that betrays its answer at least as much as the old."""
    old = context.evidence
    return {key: each for key, each in new.items() if (each.suspicion or 0.0) >= (old[key].suspicion or 0.0)}
