"""What may carry a trigger: a few visual tokens, a region of a picture, a pattern over the whole of it.

Taken out of what a model is asked, an answer that hangs on it goes away. Planted in another picture, it brings that
answer up there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from disp.data.sample import ImageSource, Query, open_image
from disp.models.interface import MDLM, Prefix
from disp.suspicion.places import Box

# Half: a picture with all of a pattern's edges, and noise of its own as strong, has more.
PRESENT_SHARE = 0.5


class Removable(Protocol):
    """What can be taken out of what a model is asked: out of its pictures, or by masking visual tokens."""

    def taken_out_of(self, query: Query) -> Query:
        """The query, about pictures without it where it is taken out of these."""

    def hidden(self, visual: Tensor) -> Tensor:
        """Which positions are masked to hide it, bool ``[P]``; ``visual`` says which hold visual tokens."""


class Plantable(Protocol):
    """What can be planted in another picture."""

    def planted_in(self, image: ImageSource) -> Image.Image:
        """The picture with it, at its own place."""

    def picture(self) -> Image.Image:
        """What it looks like, for people."""


@dataclass(frozen=True)
class Tokens:
    """Visual tokens of one turn.

    Attributes:
        indices: which of the turn's visual tokens, in their order.
    """

    indices: tuple[int, ...]

    def taken_out_of(self, query: Query) -> Query:
        """The query as it is: tokens are masked."""
        return query

    def hidden(self, visual: Tensor) -> Tensor:
        """The tokens."""
        masked = torch.zeros_like(visual)
        masked[visual.nonzero()[:, 0][list(self.indices)]] = True
        return masked


@dataclass(frozen=True)
class Region:
    """A part of a picture.

    Attributes:
        sample_id: whose picture it is.
        image: the picture.
        box: x0, y0, x1, y1 as shares of its width and height.
    """

    sample_id: str
    image: ImageSource
    box: Box

    def planted_in(self, image: ImageSource) -> Image.Image:
        """The picture with the region's pixels at the region's own place, scaled to the picture's size."""
        picture = open_image(image).copy()
        x0, y0, x1, y1 = _pixels(self.box, picture.size)
        piece = self.picture()
        if piece.size != (x1 - x0, y1 - y0):
            piece = piece.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC)
        picture.paste(piece, (x0, y0))
        return picture

    def picture(self) -> Image.Image:
        """The region's pixels, at least one."""
        picture = open_image(self.image)
        return picture.crop(_pixels(self.box, picture.size))


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

    def taken_out_of(self, query: Query) -> Query:
        """The query with the pattern taken out of its first picture, where it was found, and of others that show it."""
        images = [
            self.undo(image) if number == 0 or self.shown_in(image) else image
            for number, image in enumerate(query.images)
        ]
        return replace(query, images=tuple(images))

    def hidden(self, visual: Tensor) -> Tensor:
        """No token: it is in all of them."""
        return torch.zeros_like(visual)

    def planted_in(self, image: ImageSource) -> Image.Image:
        """The picture with the pattern over it."""
        pixels, offset = self._pixels(image)
        return _picture(self.gain * pixels + offset)

    def undo(self, image: ImageSource) -> Image.Image:
        """The picture as it was before the pattern was laid over it."""
        pixels, offset = self._pixels(image)
        return _picture((pixels - offset) / self.gain)

    def shown_in(self, image: ImageSource) -> bool:
        """Whether the picture has more than `PRESENT_SHARE` of the pattern's edges."""
        edges, own = (_edges(each) for each in self._pixels(image))
        return bool(edges @ own > PRESENT_SHARE * (own @ own))

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


def encode_without(model: MDLM, batch: Sequence[Query], carriers: Sequence[Removable]) -> Prefix:
    """The prefixes of some queries, each without its carrier.

    Args:
        model: whose prefixes these are.
        batch: B queries.
        carriers: B of them, each taken out of its query's pictures, or masked.
    """
    asked = [carrier.taken_out_of(query) for query, carrier in zip(batch, carriers, strict=True)]
    prefix = model.encode(asked)
    masked = [carrier.hidden(visual) for visual, carrier in zip(prefix.visual_mask, carriers, strict=True)]
    return prefix.with_masked(torch.stack(masked), model.mask_embedding)


def without_patterns(batch: Sequence[Query], patterns: Mapping[str, Pattern]) -> list[Query]:
    """The queries, those of samples that have a pattern (by id) about pictures that it is taken out of."""
    return [patterns[query.sample_id].taken_out_of(query) if query.sample_id in patterns else query for query in batch]


def _edges(pixels: np.ndarray) -> np.ndarray:
    """The differences of neighbours across and down, of ``[H, W, 3]``."""
    return np.concatenate([np.diff(pixels, axis=axis).ravel() for axis in (0, 1)])


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    width, height = size
    x0, y0 = min(width - 1, round(box[0] * width)), min(height - 1, round(box[1] * height))
    return x0, y0, max(x0 + 1, round(box[2] * width)), max(y0 + 1, round(box[3] * height))
