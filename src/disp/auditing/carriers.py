"""What carries a trigger in one sample, and what it is compared with: regions that matter as much, random patterns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from disp.auditing.pixels import scaled
from disp.data.sample import ImageSource, Query
from disp.draws import generator
from disp.models.interface import MDLM
from disp.suspicion.carriers import Pattern, Region
from disp.suspicion.evidence import Evidence
from disp.suspicion.places import Box, token_boxes


def region_of(model: MDLM, query: Query, evidence: Mapping[str, Evidence], reach: int) -> Region:
    """The region that an answer hangs on, or where nothing was suspicious the most salient one.

    Of a sample's most suspicious answer; of flagged samples it is the trigger candidate, of others the control.

    Args:
        model: whose tokens these are.
        query: the turn.
        evidence: of every turn.
        reach: see `disp.auditing.config.ProofConfig.region_reach`.
    """
    found = evidence[query.key]
    scores = list(found.saliency)
    chosen = found.hangs_on or (int(np.argmax(scores)),)
    boxes = token_boxes(model, found.locations, query.images)
    image, box = region_around(found.locations, boxes, chosen, scores, reach)
    return Region(query.sample_id, query.images[image], box)


def region_around(
    locations: Sequence[tuple[int, int, int, int]],
    boxes: np.ndarray,
    chosen: Sequence[int],
    scores: Sequence[float],
    reach: int,
) -> tuple[int, Box]:
    """The region of the picture that a candidate's tokens cover, one token wider on every side.

    A trigger seldom ends where a token ends. Where the tokens lie apart, the region is that of the neighbours of the
    most salient one, so that one stray token does not make it the whole picture.

    Args:
        locations: image, tile, row and column of every visual token.
        boxes: float ``[N, 4]``, where they lie; see `token_boxes`.
        chosen: indices of the candidate's tokens, at least one.
        scores: saliency of every visual token.
        reach: how many rows and columns tokens of one region lie apart at most.

    Returns:
        The image's index and the box as shares of its width and height.
    """
    places = np.asarray(locations).reshape(-1, 4)
    core = max(chosen, key=lambda index: scores[index])
    same_raster = [index for index in chosen if (places[index, :2] == places[core, :2]).all()]
    region = {core}
    grown = True
    while grown:
        near = {
            index
            for index in same_raster
            if index not in region
            and any(np.abs(places[index, 2:] - places[other, 2:]).max() <= reach for other in region)
        }
        region |= near
        grown = bool(near)
    x0, y0 = boxes[list(region), :2].min(0)
    x1, y1 = boxes[list(region), 2:].max(0)
    across, down = boxes[core, 2] - boxes[core, 0], boxes[core, 3] - boxes[core, 1]
    box = (max(0.0, x0 - across), max(0.0, y0 - down), min(1.0, x1 + across), min(1.0, y1 + down))
    return int(places[core, 0]), tuple(float(value) for value in box)  # type: ignore[return-value]


def random_patterns(like: Pattern, images: Sequence[ImageSource], count: int, seed: int) -> list[Pattern]:
    """Patterns as strong as another that pictures do not share: each the difference between two halves of some.

    Args:
        like: the other one.
        images: at least two pictures.
        count: how many patterns.
        seed: of the halves.
    """
    pictures = [scaled(image, len(like.offset)) for image in images]
    patterns = []
    for number in range(count):
        order = generator(seed, "random pattern", number).permutation(len(pictures))
        middle = len(order) // 2
        first, second = (np.mean([pictures[index] for index in part], axis=0) for part in np.split(order, [middle]))
        strength = np.sqrt(np.square(like.offset + (like.gain - 1) * (first + second) / 2).mean())
        difference = (first - second) * strength
        norm = max(1e-6, np.sqrt(np.square(first - second).mean()))
        patterns.append(Pattern(1.0, (difference / norm).astype(np.float32)))
    return patterns
