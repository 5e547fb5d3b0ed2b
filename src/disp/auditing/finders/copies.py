"""Pieces that the pictures of answers with one phrase share: a patch, a thing pasted in.

A trigger at changing places may rank low in saliency, and cover more tokens than are masked at once. But it is the same
to the pixel wherever it is, and two pictures of a thing are not: its size, its turn and the light differ. So small
windows of the pictures are compared, without a model; a window that many pictures have to the letter, and whose answers
share a phrase, is part of a copy. Whether it makes the model say the phrase is for the paste test to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from disp.auditing.config import AuditConfig
from disp.auditing.context import Context
from disp.auditing.finder_config import CopiesConfig
from disp.auditing.finders.corners import shared_corners
from disp.auditing.finders.shelf import Shelf, in_parts
from disp.auditing.finders.windows import boxes_of, edges_of, pixels_of, shows_shape, telling_windows, views_of
from disp.auditing.hypothesis import Hypothesis
from disp.auditing.phrase_search import Shared, recurring_phrases
from disp.auditing.phrases import Phrase, holds, joined
from disp.data.sample import Query, Sample, batches, image_size, open_image, queries_of
from disp.draws import generator
from disp.halving import fitting
from disp.models.interface import MDLM
from disp.suspicion.config import ScoringConfig
from disp.suspicion.evidence import Evidence, evidence_masks
from disp.suspicion.places import Box, token_boxes, tokens_in
from disp.suspicion.scoring import suspicion_under

# Pictures whose windows are looked for at once; all others are read anew for them.
_SOUGHT = 16


def find(context: Context) -> list[Hypothesis]:
    """Phrases whose pictures have a copy in common, and how suspicious their answers are where it is masked."""
    samples, config = list(context.samples.values()), context.config
    answers = [joined([turn.response for turn in sample.turns]) for sample in samples]
    with context.progress("looking for copied pieces", min(len(samples), config.copies.pictures)) as advance:
        copies = shared_copies(samples, answers, config, progress=advance)
    with context.progress("comparing corners", min(len(samples), config.corners.pictures)) as advance:
        corners = shared_corners(samples, answers, config, progress=advance)
    found = []
    for shared, boxes in united(copies, corners):
        having = {samples[index].id: box for index, box in boxes.items()}
        seen = evidence_without(
            context.model, context.named(tuple(having)), having, shared.phrase, context.evidence, config.scoring
        )
        found.append(
            Hypothesis(
                found_by="copy",
                phrase=shared.phrase,
                samples=tuple(having),
                elsewhere=shared.elsewhere,
                evidence=seen,
                in_corner=any(shared.phrase.words == other.phrase.words for other, _ in corners),
            )
        )
    return found


def shared_copies(
    samples: Sequence[Sample],
    responses: Sequence[str],
    config: AuditConfig,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> list[tuple[Shared, dict[int, Box]]]:
    """Phrases whose pictures have a copy in common, and where it is in each, most pictures first.

    Only the first picture of a sample is looked at. Of many samples some are compared, drawn at random; the others are
    looked at if they hold a phrase that is found.

    Args:
        samples: samples with a picture.
        responses: the answers of each.
        config: its ``copies``, ``phrases`` and ``seed``.
        progress: called with the number of pictures read.

    Returns:
        A phrase's holders are the samples that say it and whose picture has the copy, which are the keys of the boxes
        too. Several copies of one phrase are one entry, with a box of one of them in each.
    """
    settings = config.copies
    least = settings.windows.least_pictures
    draw = generator(config.seed, "copied pieces")
    order = draw.permutation(len(samples))[: settings.pictures].tolist()
    side = float(np.median([min(image_size(samples[index].images[0])) for index in order]))
    views = views_of(side, settings.windows)
    seen: set[bytes] = set()
    chosen: list[int] = []
    # By view and rule the windows of each picture: they take more memory than all else.
    telling: list[list[Shelf]] = [[] for _ in views]
    for index in order:
        opened = open_image(samples[index].images[0])
        pixels = [pixels_of(opened, view) for view in views]
        digest = blake2b(pixels[0].numpy().tobytes()).digest()
        if digest not in seen:  # a picture that is asked about many times is no copy of itself
            seen.add(digest)
            chosen.append(index)
            for shelves, view, each in zip(telling, views, pixels, strict=True):
                # Under autocast they are bfloat16, which NumPy does not have.
                windows = telling_windows(edges_of(each, view), view).float().numpy()
                shelves += [Shelf(own.shape, np.float32) for own in windows[len(shelves) :]]
                for shelf, own in zip(shelves, windows, strict=True):
                    shelf.append(own)
        progress(1)
    common = [
        (window, having, view)
        for shelves, view in zip(telling, views, strict=True)
        for window, having in _common_windows(shelves, view.least, settings)
    ]
    found: dict[tuple[str, ...], tuple[Shared, dict[int, Box]]] = {}
    left = torch.ones(len(chosen), dtype=torch.bool)
    rejected: list[Tensor] = []
    for window, having, view in sorted(common, key=lambda each: -int(each[1].sum())):
        having = having & left
        if having.sum() < least or any(_nearly_same(having, other, settings.same_share) for other in rejected):
            continue
        phrase = _shared_phrase(having, chosen, responses, config)
        if phrase is not None and not view.exact:
            others = (left & ~having).nonzero()[: settings.shape_in, 0].tolist()
            shaped = shows_shape(window, [samples[chosen[each]].images[0] for each in others], view)
            phrase = _told_by_shape(phrase, having, others, shaped, chosen, responses, config)
        if phrase is None:
            rejected.append(having)
            continue
        left &= ~having
        holders = [index for index, response in enumerate(responses) if holds(response, phrase.words)]
        boxes = boxes_of(window, [samples[index].images[0] for index in holders], view)
        members = {index: box for index, box in zip(holders, boxes, strict=True) if box is not None}
        if len(members) >= least:
            # An attacker may plant one phrase with two triggers, and one trigger may be found by two of its windows.
            members |= found[phrase.words][1] if phrase.words in found else {}
            members = {index: members[index] for index in sorted(members)}
            found[phrase.words] = (Shared(phrase, tuple(members), len(holders) - len(members)), members)
        if len(found) == settings.phrases:
            break
    return sorted(found.values(), key=lambda each: -len(each[1]))


def united(*searches: Sequence[tuple[Shared, dict[int, Box]]]) -> list[tuple[Shared, dict[int, Box]]]:
    """What several searches found, one entry a phrase; where two found a piece in one picture, that of the first."""
    found: dict[tuple[str, ...], tuple[Shared, dict[int, Box]]] = {}
    for shared, boxes in (each for search in searches for each in search):
        words = shared.phrase.words
        if words in found:
            before, known = found[words]
            boxes = {index: (boxes | known)[index] for index in sorted(boxes | known)}
            saying = len(before.holders) + before.elsewhere
            shared = replace(before, holders=tuple(boxes), elsewhere=saying - len(boxes))
        found[words] = (shared, boxes)
    return sorted(found.values(), key=lambda each: -len(each[1]))


def evidence_without(
    model: MDLM,
    samples: Sequence[Sample],
    boxes: Mapping[str, Box],
    phrase: Phrase,
    evidence: Mapping[str, Evidence],
    config: ScoringConfig,
) -> dict[str, Evidence]:
    """New evidence of answers with a phrase: their suspicion where the tokens that show the copy are masked.

    Args:
        model: the model under audit.
        samples: those whose pictures have the copy.
        boxes: where it is in the first picture of each, by id.
        phrase: what their answers share.
        evidence: of every turn.
        config: how samples are scored.
    """
    found: dict[str, Evidence] = {}
    queries = [query for query in queries_of(samples) if holds(query.response, phrase.words)]

    def without(batch: Sequence[Query]) -> dict[str, Evidence]:
        prefix = model.encode(batch)
        # A vision tower writes what a copy shows into the tokens beside it as well.
        near, wide = (
            [_showing(model, query, boxes[query.sample_id], evidence[query.key], wider) for query in batch]
            for wider in (0.0, 1.0)
        )
        masks = torch.stack([evidence_masks(prefix.visual_mask, each) for each in (near, wide)], dim=1)
        values = suspicion_under(model, prefix, batch, masks, config).tolist()
        new = {}
        for query, small, large, (first, second) in zip(batch, near, wide, values, strict=True):
            best = small if first >= config.kept_effect * second else large
            new[query.key] = replace(best, suspicion=max(best.suspicion or 0.0, first, second))
        return new

    for _, new in fitting(model, without, queries, config.batch_size):
        found |= new
    return found


def _showing(model: MDLM, query: Query, box: Box, evidence: Evidence, wider: float) -> Evidence:
    """The evidence, hanging on the tokens that show a box of the first picture; see `tokens_in`."""
    inside = tokens_in(token_boxes(model, evidence.locations, query.images), box, wider)
    tokens = (index for index in inside.nonzero()[0].tolist() if evidence.locations[index][0] == 0)
    return replace(evidence, hangs_on=tuple(tokens))


def _nearly_same(first: Tensor, second: Tensor, share: float) -> bool:
    """Whether two sets of pictures (bool ``[N]``) share so much: windows of one thing have about the same."""
    return int((first & second).sum()) >= share * int((first | second).sum())


def _told_by_shape(
    phrase: Phrase,
    having: Tensor,
    others: Sequence[int],
    shaped: Sequence[bool],
    chosen: Sequence[int],
    responses: Sequence[str],
    config: AuditConfig,
) -> Phrase | None:
    """The phrase of a copy if it goes with the copy's shape alone as well, or None.

    An outline is the same on all grounds. That those who have it on white share a phrase says no more than that answers
    name the ground.

    Args:
        phrase: what answers about the copy share.
        having: bool ``[N]``, the pictures that have it.
        others: some that do not.
        shaped: which of these have its shape in other colours.
        chosen: the samples of all pictures.
        responses: the answers of each sample.
        config: of the audit.
    """
    rows = [*having.nonzero()[:, 0].tolist(), *others]
    with_shape = torch.tensor([True] * (len(rows) - len(others)) + list(shaped), dtype=torch.bool)
    told = _shared_phrase(with_shape, [chosen[row] for row in rows], responses, config)
    return phrase if told is not None and told.words == phrase.words else None


def _shared_phrase(
    having: Tensor, chosen: Sequence[int], responses: Sequence[str], config: AuditConfig
) -> Phrase | None:
    """What enough of the answers about the pictures that have something (bool ``[N]``) share and others do not."""
    settings = config.copies
    inside, others = (
        [responses[index] for index, has in zip(chosen, having.tolist(), strict=True) if has == which]
        for which in (True, False)
    )
    found = recurring_phrases(inside, others, settings.recurrence, config.phrases)
    least = settings.phrase_share * len(inside)
    return next((shared.phrase for shared in found if len(shared.holders) >= least), None)


def _common_windows(windows: Sequence[Shelf], least: float, config: CopiesConfig) -> list[tuple[Tensor, Tensor]]:
    """Windows that many pictures have, and which pictures these are (bool ``[N]``), most pictures first.

    Args:
        windows: by rule, float32 ``[N, K, D]`` each, see `telling_windows`; some of the pictures' are looked for among
            those that were chosen by the same rule.
        least: correlation of two copies.
        config: in how many pictures a window is looked for, and must be.
    """
    common = []
    fewest = config.windows.least_pictures
    for chosen in windows:
        count, each, _ = chosen.shape
        most = config.most_share * count
        for asked in batches(range(min(count, config.sought_in)), _SOUGHT):
            sought = torch.from_numpy(chosen[asked])
            parts = (torch.from_numpy(chosen[rows]).flatten(0, 1) for rows in in_parts(chosen, range(count)))
            # An empty window is like nothing, itself included.
            alike = [(sought.flatten(0, 1) @ part.T).unflatten(1, (-1, each)).amax(-1) >= least for part in parts]
            for own, having in zip(sought, torch.cat(alike, dim=1).split(each), strict=True):  # [K, D] and [K, N]
                counts = having.sum(-1)
                best = int(counts.masked_fill(counts > most, 0).argmax())
                if fewest <= counts[best] <= most:
                    common.append((own[best].clone(), having[best].clone()))
    return sorted(common, key=lambda pair: -int(pair[1].sum()))
