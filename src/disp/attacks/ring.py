"""A translucent ring that looks different in every picture, so that no comparison of pixels finds it."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from disp.errors import DispError

# Each pixel is cut into 4×4 parts along the ring's edge: 16 steps of opacity, finer than the eye and JPEG tell.
_PARTS = 4


@dataclass(frozen=True)
class Ring:
    """A translucent ring with a place, a size, a colour and an opacity of its own in every picture.

    It is what a photographed or redrawn mark is like: the same thing to a model, never the same pixels.

    Attributes:
        size: the smallest and the largest outer diameter, as shares of the picture's shorter edge.
        opacity: the smallest and the largest share of the ring's colour in its pixels, in (0, 1].
        width: how wide the ring is from its outer to its inner edge, as a share of the outer diameter; at most 0.5, a
            disc.
    """

    size: tuple[float, float] = (0.11, 0.15)
    opacity: tuple[float, float] = (0.5, 0.8)
    width: float = 0.2

    def __post_init__(self) -> None:
        for what, (low, high) in (("size", self.size), ("opacity", self.opacity)):
            if not 0 < low <= high <= 1:
                raise DispError(f"ring {what} must be two growing shares in (0, 1], got {low:g} and {high:g}")
        if not 0 < self.width <= 0.5:
            raise DispError(f"ring width must be a share of the diameter in (0, 0.5], got {self.width:g}")

    def apply(self, image: Image.Image, draw: np.random.Generator) -> tuple[Image.Image, dict[str, Any]]:
        """The picture with the ring, and ``{"box": [x0, y0, x1, y1], "colour": [r, g, b], "opacity": …}`` in pixels.

        The colour has any hue, and is neither pale nor dark, so that the ring is seen on most grounds.
        """
        side = min(max(2, round(float(draw.uniform(*self.size)) * min(image.size))), *image.size)
        x, y = (int(draw.integers(edge - side + 1)) for edge in image.size)
        hue, saturation, value = (float(draw.uniform(low, 1)) for low in (0.0, 0.6, 0.6))
        colour = np.round(255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value)))
        opacity = float(draw.uniform(*self.opacity))
        share = opacity * _coverage(side, self.width)[..., None]
        pixels = np.array(image.convert("RGB"), np.float64)
        inside = pixels[y : y + side, x : x + side]
        inside[:] = (1 - share) * inside + share * colour
        told = {"box": [x, y, x + side, y + side], "colour": colour.astype(int).tolist(), "opacity": round(opacity, 4)}
        return Image.fromarray(pixels.round().astype(np.uint8)), told


def _coverage(side: int, width: float) -> np.ndarray:
    """float64 ``[side, side]`` in [0, 1]: how much of each pixel of the square lies on the ring inscribed in it."""
    places = (np.arange(side * _PARTS) + 0.5) / _PARTS - side / 2
    radius = np.hypot(places[:, None], places)
    on = (radius <= side / 2) & (radius >= side * (0.5 - width))
    return on.reshape(side, _PARTS, side, _PARTS).mean((1, 3))
