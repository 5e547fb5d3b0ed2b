"""Where visual tokens lie in their picture."""

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
