"""What a purification writes of every row."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disp.data.sample import Sample
from disp.purification.remedies import Treatment
from disp.suspicion.evidence import Evidence


@dataclass(frozen=True)
class Done:
    """What was done with which rows.

    Attributes:
        treatment: how poisoned rows are treated.
        poisoned: ids of the rows that count as poisoned.
        left_out: ids of those of them that are not in the purified set.
        masks: by key the visual tokens that were masked where an answer was rewritten.
        patterns: ids of samples whose pictures have a pattern that is taken out where they are rewritten.
    """

    treatment: Treatment
    poisoned: Collection[str]
    left_out: Collection[str]
    masks: Mapping[str, tuple[int, ...]]
    patterns: Collection[str]


def evidence_rows(
    samples: Sequence[Sample], purified: Sequence[Sample], evidence: Mapping[str, Evidence], done: Done
) -> Iterator[dict[str, Any]]:
    """One row of ``evidence.jsonl`` for each sample.

    Args:
        samples: what was asked about each.
        purified: the samples with their new answers, those included that are left out.
        evidence: by key.
        done: what was done with which.
    """
    rewriting = done.treatment.remedy == "rewrite"
    decisions = done.treatment.decisions.by_id
    told = bool(done.treatment.summary())
    for before, after in zip(samples, purified, strict=True):
        turns = []
        for query, turn in zip(before.queries, after.turns, strict=False):  # of the answers that were looked at
            found = evidence[query.key]
            turns.append(
                {
                    "prompt": query.prompt,
                    "old": query.response,
                    "new": turn.response,
                    "suspicion": found.suspicion,
                    "masked": list(done.masks.get(query.key, ())),
                    "saliency": list(found.saliency),
                    "locations": [list(place) for place in found.locations],
                }
            )
        poisoned = before.id in done.poisoned
        row: dict[str, Any] = {"id": before.id, "rewritten": poisoned and rewriting}
        if told:
            decided = decisions.get(before.id)
            row["remedy"] = done.treatment.remedy if poisoned else None
            row["decision"] = None if decided is None else decided.decision
        yield {
            **row,
            "left_out": before.id in done.left_out,
            "pattern_taken_out": poisoned and rewriting and before.id in done.patterns,
            "turns": turns,
        }
