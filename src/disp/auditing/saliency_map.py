"""Where saliency lies in pictures of any size and tiling, as one map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A multiple of most rasters' rows and columns, such as 6, 8, 12 and 24; it only shows something.
MAP_SIDE = 24


def saliency_map(items: Sequence[tuple[np.ndarray, np.ndarray]], side: int = MAP_SIDE) -> np.ndarray:
    """The mean map of several samples, each scaled to a sum of one.

    Args:
        items: for each sample the tokens' boxes float ``[N, 4]`` and scores float ``[N]``.
        side: rows and columns of the map.

    Returns:
        float64 ``[side, side]``.
    """
    total = np.zeros((side, side))
    for boxes, values in items:
        one = np.zeros((side, side))
        for (x0, y0, x1, y1), value in zip(boxes, values, strict=True):
            # Every field that the token reaches into: of a raster finer than the map none gets lost.
            top, left = (int(edge * side + 1e-6) for edge in (y0, x0))
            bottom, right = (int(np.ceil(edge * side - 1e-6)) for edge in (y1, x1))
            one[top:bottom, left:right] = np.maximum(one[top:bottom, left:right], value)
        total += one / one.sum() if one.sum() else 0
    return total / max(1, len(items))
