"""From visual tokens back to the picture: where a token lies, and the region that a few of them cover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from disp.data.sample import ImageSource, image_size
from disp.models.interface import MDLM

Box = tuple[float, float, float, float]


def token_boxes(
    model: MDLM, locations: Sequence[tuple[int, int, int, int]], images: Sequence[ImageSource]
) -> np.ndarray:
    """Where each visual token of a sample lies in its picture, however the model cuts, pads or tiles it.

    Args:
        model: whose tokens these are.
        locations: image, tile, row and column of all visual tokens; see `disp.models.interface.Prefix`.
        images: the sample's pictures.

    Returns:
        float64 ``[N, 4]``: x0, y0, x1, y1 as shares of the picture's width and height.
    """
    places = torch.tensor(locations, dtype=torch.int64).view(-1, 4)
    boxes = torch.zeros(len(places), 4, dtype=torch.float64)
    for image in places[:, 0].unique().tolist():
        inside = places[:, 0] == image
        boxes[inside] = model.token_boxes(places[inside, 1:], image_size(images[image]), len(images))
    return boxes.numpy()


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


def tokens_in(boxes: np.ndarray, region: Box, wider: float = 0.0) -> np.ndarray:
    """Which visual tokens overlap a region of their picture.

    Args:
        boxes: float ``[N, 4]``, where the tokens lie; see `token_boxes`.
        region: as shares of the picture's width and height.
        wider: by how many tokens the region is widened on every side.

    Returns:
        bool ``[N]``.
    """
    across, down = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x0, y0, x1, y1 = region
    # A token that is touched by a hundredth of its side shows nothing of the region.
    inside = (boxes[:, 2] - 0.01 * across > x0 - wider * across) & (boxes[:, 0] + 0.01 * across < x1 + wider * across)
    return inside & (boxes[:, 3] - 0.01 * down > y0 - wider * down) & (boxes[:, 1] + 0.01 * down < y1 + wider * down)
