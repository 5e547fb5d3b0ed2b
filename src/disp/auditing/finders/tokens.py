"""Phrases that recur among flagged answers, those that flip when a few salient visual tokens are masked."""

from __future__ import annotations

from disp.auditing.context import Context
from disp.auditing.hypothesis import Hypothesis
from disp.auditing.phrase_search import recurring_phrases
from disp.auditing.phrases import BETWEEN_TURNS, holds, joined
from disp.suspicion.evidence import suspicious_query


def find(context: Context) -> list[Hypothesis]:
    """Phrases of the answers that samples are flagged for, which the other samples' answers do not have as often.

    Pictures are counted, not rows: all that is asked about one picture may hang on the same thing in it. Rows without
    a picture are left out, since none of them could be flagged.
    """
    above, others = context.flagged(), context.unflagged()
    said = [joined([suspicious_query(sample, context.evidence).response]) for sample in above]
    elsewhere = [joined([turn.response for turn in sample.turns]) for sample in others]
    flagged, rest = context.index.by_picture(above), context.index.by_picture(others)
    recurring = recurring_phrases(
        [BETWEEN_TURNS.join([said[index] for index in rows]) for rows in flagged.values()],
        [BETWEEN_TURNS.join([elsewhere[index] for index in rows]) for at, rows in rest.items() if at not in flagged],
        context.config.tokens,
        context.config.phrases,
    )
    rows_of = list(flagged.values())
    found = []
    for shared in recurring:
        words = shared.phrase.words
        rows = sorted(row for place in shared.holders for row in rows_of[place] if holds(said[row], words))
        found.append(
            Hypothesis(
                found_by="tokens",
                phrase=shared.phrase,
                samples=tuple(above[row].id for row in rows),
                elsewhere=sum(holds(text, words) for text in elsewhere),
                p_value=shared.p_value,
            )
        )
    return found
