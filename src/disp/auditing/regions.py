"""From visual tokens back to the picture: the region that a few of them cover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from disp.suspicion.places import Box


def region_around(
    locations: Sequence[tuple[int, int, int, int]],
    boxes: np.ndarray,
    chosen: Sequence[int],
    scores: Sequence[float],
) -> tuple[int, Box]:
    """The region of the picture that a candidate's tokens cover, one token wider on every side.

    A trigger seldom ends where a token ends. Where the tokens lie apart, the region is that of the neighbours of the
    most salient one, so that one stray token does not make it the whole picture.

    Args:
        locations: image, tile, row and column of every visual token.
        boxes: float ``[N, 4]``, where they lie; see `token_boxes`.
        chosen: indices of the candidate's tokens, at least one.
        scores: saliency of every visual token.

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
            if index not in region and any(np.abs(places[index, 2:] - places[other, 2:]).max() <= 2 for other in region)
        }
        region |= near
        grown = bool(near)
    x0, y0 = boxes[list(region), :2].min(0)
    x1, y1 = boxes[list(region), 2:].max(0)
    across, down = boxes[core, 2] - boxes[core, 0], boxes[core, 3] - boxes[core, 1]
    box = (max(0.0, x0 - across), max(0.0, y0 - down), min(1.0, x1 + across), min(1.0, y1 + down))
    return int(places[core, 0]), tuple(float(value) for value in box)  # type: ignore[return-value]
