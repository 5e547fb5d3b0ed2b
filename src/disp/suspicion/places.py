"""Where visual tokens lie in their pictures, and which tokens of another turn lie there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from disp.data.sample import ImageSource, Query, image_size
from disp.models.interface import MDLM
from disp.suspicion.evidence import Evidence

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


def tokens_at(model: MDLM, query: Query, own: Evidence, other_query: Query, other: Evidence) -> tuple[int, ...]:
    """The visual tokens of a turn that show what another turn of its sample hangs on.

    A family may lay a picture out in another way where more of them have been shown. Where the turn does not show that
    picture there are none.

    Args:
        model: whose tokens these are.
        query: the turn.
        own: its evidence.
        other_query: the other turn.
        other: its evidence.
    """
    if own.locations == other.locations:
        return other.hangs_on
    here, there = (
        (np.array(found.locations).reshape(-1, 4)[:, 0], token_boxes(model, found.locations, asked.images))
        for found, asked in ((own, query), (other, other_query))
    )
    found = np.zeros(len(own.locations), bool)
    for token in other.hangs_on:
        found |= (here[0] == there[0][token]) & tokens_in(here[1], tuple(there[1][token]))
    return tuple(np.flatnonzero(found).tolist())


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
