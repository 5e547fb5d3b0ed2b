"""One phrase may have several triggers: whose rows are whose, where pictures were compared in several ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from disp.auditing.context import Context
from disp.auditing.finder_config import CornersConfig
from disp.auditing.finders import FINDERS
from disp.auditing.hypothesis import Finding, Hypothesis
from disp.auditing.proof import evidence_of
from disp.suspicion.evidence import Evidence


def in_pictures(hypothesis: Hypothesis) -> bool:
    """Whether it was found by comparing pictures."""
    return FINDERS[hypothesis.found_by].in_pictures


def better_explained(hypotheses: Sequence[Hypothesis], config: CornersConfig) -> tuple[Hypothesis, ...]:
    """The hypotheses without patterns that are a piece of the same phrase, stretched or seen in part of the pictures.

    A piece that is as many pixels large in pictures of all sizes is a pattern of some of them, blurred, which cannot be
    taken out of a picture. A black one is a pattern of those alone that are bright there. It is known by the many
    pictures that have the piece and not the pattern.
    """
    pieces = [each for each in hypotheses if each.in_corner]

    def is_stretched(pattern: Hypothesis) -> bool:
        return any(
            set(pattern.samples) <= set(piece.samples)
            and len(pattern.samples) < config.whole_share * len(piece.samples)
            and (pattern.phrase.said_in(piece.phrase.text) or piece.phrase.said_in(pattern.phrase.text))
            for piece in pieces
        )

    return tuple(each for each in hypotheses if each.pattern is None or not is_stretched(each))


def merged(context: Context) -> Context:
    """The context after pictures were compared, with the rows of each finding claimed by one of them.

    A trigger of another kind, or one that is not learnt, may betray more rows of a proven phrase. And what has not come
    into the model is in the data all the same: of those findings each keeps the rows of its own, and is marked as
    ``unlearnt``.
    """
    others = [each for each in context.findings if not in_pictures(each.hypothesis)]
    proven = []
    for finding in context.findings:
        if in_pictures(finding.hypothesis) and finding.confirmed:
            finding, seen = _with_rows_of_another(context, finding)
            context = context.knowing(seen)
            proven.append(finding)
    explained = frozenset(key for finding in proven for key in finding.samples)
    untaught = _unlearnt(context)
    return replace(context, findings=(*others, *proven, *untaught), explained=context.explained | explained)


def _with_rows_of_another(context: Context, finding: Finding) -> tuple[Finding, dict[str, Evidence]]:
    """A proven finding with the rows of its phrase that were found in pictures in another way, and their evidence."""
    known = set(finding.samples)
    found: dict[str, Evidence] = {}
    for other in context.hypotheses:
        if not in_pictures(other) or (other.pattern is None) == (finding.pattern is None):
            continue
        ids = tuple(key for key in other.samples if key not in known)
        if not ids or not finding.phrase.said_in(other.phrase.text):
            continue
        known.update(ids)
        found |= evidence_of(context, other, context.named(ids))
        finding = replace(finding, more=(*finding.more, *ids))
        if other.pattern is not None:
            # A finding has one pattern.
            return replace(finding, pattern=other.pattern, with_pattern=ids), found
        finding = replace(finding, with_copy=(*finding.with_copy, *ids))
    return finding, found


def _unlearnt(context: Context) -> list[Finding]:
    """Findings in pictures that nothing proves; of one phrase first what more of its pictures have.

    Another of that phrase is named beside it if it has rows of its own, and it is these that are answered again in its
    way. Of equals the pattern comes first, to be taken out.
    """
    taken: dict[tuple[str, ...], set[str]] = {}
    kept = []
    findings = [each for each in context.findings if in_pictures(each.hypothesis) and not context.proven(each.phrase)]
    for finding in sorted(findings, key=lambda each: -len(each.samples)):
        before = taken.setdefault(finding.phrase.words, set())
        own = tuple(key for key in finding.samples if key not in before)
        if not own:
            continue
        before.update(own)
        hypothesis = finding.hypothesis
        if hypothesis.pattern is None:
            finding = replace(finding, with_copy=own)
        else:
            finding = replace(finding, with_pattern=own)
        # Where only what is learnt counts nobody asks what a picture without its pattern would do.
        asked = hypothesis.pattern is None or not context.config.learnt_only
        seen = evidence_of(context, hypothesis, context.named(own)) if asked else {}
        kept.append(replace(finding, hypothesis=replace(hypothesis, evidence=seen), unlearnt=True))
    return kept
