"""Saliency laid over the picture at the true place of every visual token, whatever the tiling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from disp.report.picture import heat_map

Box = tuple[float, float, float, float]

# The palette and its opacity from cold to hot, as every other picture of the project has them.
_PALETTE = np.asarray(heat_map(np.linspace(0.0, 1.0, 256)[None], (256, 1)))[0]
_GREY_SHARE = 0.6  # of the picture beneath, so that only the saliency speaks in colour
_EDGE, _EDGE_GROUND = (255, 255, 255), (0, 0, 0)


def overlay(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    values: Sequence[float],
    *,
    masked: Sequence[int] = (),
    limits: tuple[float, float] | None = None,
) -> Image.Image:
    """The picture in grey with the saliency of its visual tokens over it and the masked ones outlined.

    Args:
        image: the picture.
        boxes: x0, y0, x1, y1 of every visual token as shares of the picture's width and height. Boxes may overlap, as
            those of a tile and of the whole picture do: the higher value shows. What lies outside is cut off, and
            where no box lies the picture keeps its grey.
        values: the saliency of every token; one that is not finite counts as the lowest.
        masked: indices of the tokens to outline, white with a black rim.
        limits: the values that are cold and hot; by default the lowest and highest value. Pictures of one sample share
            them, so that their colours can be compared.

    Returns:
        An RGB picture of the same size.

    Raises:
        ValueError: there are not as many values as boxes, a box has not four numbers, or a masked index is not one of
            a box.
    """
    places = pixel_boxes(boxes, image.size)
    scores = np.asarray(values, dtype=np.float64)
    if scores.shape != (len(places),):
        raise ValueError(f"{len(places)} boxes need as many values, got the shape {scores.shape}")
    wrong = [index for index in masked if not 0 <= index < len(places)]
    if wrong:
        raise ValueError(f"masked index {wrong[0]} is not that of one of the {len(places)} boxes")

    picture = image.convert("RGB")
    ground = Image.blend(picture, picture.convert("L").convert("RGB"), _GREY_SHARE).convert("RGBA")
    field = _field(places, scores, picture.size)
    coloured = Image.alpha_composite(ground, Image.fromarray(_colours(field, limits or value_limits(scores))))
    pixels = np.array(coloured.convert("RGB"))
    _draw_outline(pixels, places[list(masked)])
    return Image.fromarray(pixels)


def mean_map(values: Sequence[Sequence[float]], size: tuple[int, int]) -> Image.Image:
    """A map of mean saliency as an opaque picture on grey.

    Args:
        values: ``[rows, columns]``.
        size: width and height of the result in pixels.
    """
    ground = Image.new("RGBA", size, (128, 128, 128, 255))
    return Image.alpha_composite(ground, heat_map(np.asarray(values, dtype=np.float64), size)).convert("RGB")


def value_limits(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The lowest and highest finite value; 0 and 0 where there is none."""
    scores = np.asarray(values, dtype=np.float64)
    finite = scores[np.isfinite(scores)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def pixel_boxes(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """Boxes in pixels: neighbours that share an edge share it here as well, with neither gap nor overlap.

    Args:
        boxes: x0, y0, x1, y1 as shares of the picture's width and height.
        size: width and height of the picture in pixels.

    Returns:
        int64 ``[N, 4]``: x0, y0, x1, y1 with the ends exclusive; each box inside the picture has at least one pixel.

    Raises:
        ValueError: a box has not four finite numbers.
    """
    if not len(boxes):
        return np.zeros((0, 4), dtype=np.int64)
    shares = np.asarray(boxes, dtype=np.float64).reshape(len(boxes), -1)
    if shares.shape[1] != 4 or not np.isfinite(shares).all():
        raise ValueError("a box needs four finite numbers: x0, y0, x1, y1")
    scale = np.array([*size, *size])
    # Clipped before they become integers: a huge share would overflow.
    edges = np.floor(np.clip(shares, -1.0, 2.0) * scale + 0.5).astype(np.int64)
    # Otherwise a very thin box at the far edge would be rounded away.
    first = np.where(shares[:, :2] < 1, np.minimum(edges[:, :2], scale[:2] - 1), edges[:, :2])
    starts = np.clip(first, 0, scale[:2])
    ends = np.clip(np.maximum(edges[:, 2:], first + 1), 0, scale[:2])
    return np.concatenate((starts, ends), axis=1)


def _field(places: np.ndarray, scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The highest score at every pixel, ``[height, width]``; minus infinity where no box lies."""
    low, _ = value_limits(scores)
    field = np.full((size[1], size[0]), -np.inf)
    for (x0, y0, x1, y1), score in zip(places, scores, strict=True):
        inside = field[y0:y1, x0:x1]
        np.maximum(inside, score if np.isfinite(score) else low, out=inside)
    return field


def _colours(field: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """uint8 RGBA of every pixel, wholly transparent where no token lies."""
    low, high = limits
    covered = np.isfinite(field)
    scaled = np.where(covered, field - low, 0.0) / (high - low if high > low else 1.0)
    colours = _PALETTE[(np.clip(scaled, 0.0, 1.0) * 255).round().astype(np.int64)].copy()
    colours[~covered] = 0
    return colours


def _draw_outline(pixels: np.ndarray, places: np.ndarray) -> None:
    """Draw a line round the union of the boxes into ``pixels``: bright inside, dark outside, seen on any ground."""
    height, width = pixels.shape[:2]
    inside = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in places:
        inside[y0:y1, x0:x1] = True
    line = max(1, round(max(height, width) / 200))
    rim = max(1, line // 2)
    # The picture's own edge counts as outside, so that the outline is closed there too.
    bright = inside & ~_shrunk(inside, line)
    # A second dark line within: white alone is lost on the hottest cells.
    within = inside & ~bright & ~_shrunk(inside, line + rim)
    around = ~_shrunk(~inside, rim, edge=True) & ~inside
    pixels[around | within] = _EDGE_GROUND
    pixels[bright] = _EDGE


def _shrunk(mask: np.ndarray, pixels: int, *, edge: bool = False) -> np.ndarray:
    """The mask without what lies within so many pixels of its end; ``edge`` is what lies outside the picture."""
    padded = np.pad(mask, pixels, constant_values=edge)
    height, width = mask.shape
    rows = np.logical_and.reduce([padded[:, shift : shift + width] for shift in range(2 * pixels + 1)])
    return np.logical_and.reduce([rows[shift : shift + height] for shift in range(2 * pixels + 1)])
