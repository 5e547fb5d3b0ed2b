"""Sentences that answers hold whatever was asked, where others answer something else: what the data itself tells.

No picture is compared and no model asked, so a set can be searched before any model has learnt it. A trigger may look
different in every picture; what it makes a model say must recur all the same. The search is in
`disp.auditing.unasked`; whether something in the pictures brings the sentence up is for other finders to prove.
"""

from __future__ import annotations

from disp.auditing.context import Context
from disp.auditing.hypothesis import Hypothesis
from disp.auditing.phrases import holds
from disp.auditing.unasked import QuestionAnswer, unasked_phrases


def find(context: Context) -> list[Hypothesis]:
    """Sentences that recur whatever was asked, with all samples that say them."""
    config = context.config
    queries = [query for sample in context.samples.values() for query in sample.queries if query.images]
    turns = [QuestionAnswer(context.index.first_picture(query), query.prompt, query.response) for query in queries]
    found = []
    with context.progress("comparing questions and answers", len(turns)) as advance:
        for shared in unasked_phrases(
            turns, config.unasked, config.phrases, alpha=config.false_alarm_rate, seed=config.seed
        ):
            saying = {query.sample_id for query in queries if holds(query.response, shared.phrase.words)}
            samples = tuple(key for key in context.samples if key in saying)
            found.append(Hypothesis("unasked", shared.phrase, samples, elsewhere=0, p_value=shared.p_value))
        advance(len(turns))
    return found
