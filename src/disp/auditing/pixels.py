"""Pictures as arrays of numbers."""

from __future__ import annotations

import numpy as np
from PIL import Image

from disp.data.sample import ImageSource, open_image


def scaled(image: ImageSource, side: int) -> np.ndarray:
    """The picture as a square, float32 ``[side, side, 3]`` of 0 to 255."""
    return np.asarray(open_image(image).resize((side, side), Image.Resampling.BILINEAR), np.float32)
