"""Where visual tokens stand in a prompt, and lie in their picture."""

from __future__ import annotations

import torch
from torch import Tensor


def raster_boxes(places: Tensor) -> Tensor:
    """Boxes of tokens whose tiles each cover the whole picture, as where a family resizes it to a raster of tokens.

    Args:
        places: int64 ``[n, 3]``, tile, row and column of all visual tokens of one picture, in any order.

    Returns:
        float64 ``[n, 4]``: x0, y0, x1, y1 as shares of the picture's width and height.
    """
    boxes = torch.zeros(len(places), 4, dtype=torch.float64)
    for tile in places[:, 0].unique():
        inside = places[:, 0] == tile
        rows, columns = places[inside, 1].double(), places[inside, 2].double()
        height, width = rows.max() + 1, columns.max() + 1
        boxes[inside] = torch.stack(
            (columns / width, rows / height, (columns + 1) / width, (rows + 1) / height), dim=-1
        )
    return boxes


def token_locations(token_ids: Tensor, grids: Tensor) -> Tensor:
    """Where each visual token is, int64 ``[B, P, 4]``: image of its row, tile 0, row, column; -1 elsewhere.

    Args:
        token_ids: int64 ``[B, P]``, ``-2 - index`` of its image at each visual token. Visual tokens of one image are
            consecutive and images are in order of appearance.
        grids: int64 ``[images, 2]``, rows and columns of visual tokens.
    """
    visual_mask = token_ids < -1
    locations = torch.full((*token_ids.shape, 4), -1, device=token_ids.device)
    image = -2 - token_ids[visual_mask]
    if not len(image):
        return locations
    counts = grids.prod(-1)
    place = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image]
    rows, columns = visual_mask.nonzero()[:, 0], grids[image, 1]
    first = torch.full((len(token_ids),), len(grids), device=image.device)
    first.scatter_reduce_(0, rows, image, "amin")
    locations[visual_mask] = torch.stack(
        (image - first[rows], torch.zeros_like(place), place // columns, place % columns), dim=-1
    )
    return locations
