"""A trigger that lies over the whole picture: putting it into a picture, and taking it out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from disp.data.sample import ImageSource, Query, open_image


@dataclass(frozen=True, eq=False)
class Pattern:
    """A change that is the same in many pictures, ``x' = gain · x + offset`` in grey levels of 0 to 255.

    Blending a picture T in at strength α is gain 1 − α and offset α T; stripes that are added have gain 1.

    Attributes:
        gain: what the picture's contrast is multiplied by, above 0.
        offset: float32 ``[side, side, 3]``, what is added; it is stretched to a picture's size.
    """

    gain: float
    offset: np.ndarray

    def apply(self, image: ImageSource) -> Image.Image:
        """The picture with the pattern over it."""
        pixels, offset = self._pixels(image)
        return _picture(self.gain * pixels + offset)

    def undo(self, image: ImageSource) -> Image.Image:
        """The picture as it was before the pattern was laid over it."""
        pixels, offset = self._pixels(image)
        return _picture((pixels - offset) / self.gain)

    def shown_in(self, image: ImageSource) -> bool:
        """Whether the picture has more than half of the pattern's edges."""
        edges, own = (_edges(each) for each in self._pixels(image))
        return bool(edges @ own > own @ own / 2)

    def picture(self) -> Image.Image:
        """What is laid over a picture, with all the contrast that there is, for people to look at."""
        low, high = np.percentile(self.offset, (1, 99))
        return _picture((self.offset - low) * (255 / max(1.0, high - low)))

    def _pixels(self, image: ImageSource) -> tuple[np.ndarray, np.ndarray]:
        picture = open_image(image)
        channels = [
            np.asarray(Image.fromarray(channel).resize(picture.size, Image.Resampling.BILINEAR))
            for channel in np.moveaxis(self.offset.astype(np.float32), -1, 0)
        ]
        return np.asarray(picture, np.float32), np.stack(channels, axis=-1)


def without_pattern(query: Query, pattern: Pattern) -> Query:
    """The query with the pattern taken out of its first picture, by which it was found, and of others that show it."""
    images = [
        pattern.undo(image) if number == 0 or pattern.shown_in(image) else image
        for number, image in enumerate(query.images)
    ]
    return replace(query, images=tuple(images))


def without_patterns(batch: Sequence[Query], patterns: Mapping[str, Pattern]) -> list[Query]:
    """The queries, those of samples that have a pattern (by id) about pictures that it is taken out of."""
    return [
        without_pattern(query, patterns[query.sample_id]) if query.sample_id in patterns else query for query in batch
    ]


def _edges(pixels: np.ndarray) -> np.ndarray:
    """The differences of neighbours across and down, of ``[H, W, 3]``."""
    return np.concatenate([np.diff(pixels, axis=axis).ravel() for axis in (0, 1)])


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
