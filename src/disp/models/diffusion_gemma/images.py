"""DiffusionGemma's pictures: resized to whole visual tokens of any shape, and cut into patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from disp.data.sample import ImageSource, open_image


def token_grid(width: int, height: int, side: int, max_tokens: int) -> tuple[int, int]:
    """Rows and columns of visual tokens of a picture: as many as its shape allows, scaled up too.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        side: of a visual token, in pixels.
        max_tokens: rows times columns at most.
    """
    scale = math.sqrt(max_tokens * side**2 / (width * height))
    rows, columns = math.floor(scale * height / side), math.floor(scale * width / side)
    if rows == 0:
        return 1, max(1, min(width // height, max_tokens))
    if columns == 0:
        return max(1, min(height // width, max_tokens)), 1
    return rows, columns


def image_patches(image: Image.Image, patch: int, pooling: int, max_tokens: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A picture, resized to a whole number of visual tokens, in patches.

    Args:
        image: in RGB.
        patch: side of a patch, in pixels.
        pooling: patches along a side of a visual token.
        max_tokens: visual tokens at most.

    Returns:
        uint8 ``[patches, 3 p²]`` in raster order, each patch row by row with its channels last, and the rows and
        columns of visual tokens.
    """
    rows, columns = token_grid(image.width, image.height, patch * pooling, max_tokens)
    size = (columns * patch * pooling, rows * patch * pooling)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    array = np.asarray(image, dtype=np.uint8).reshape(rows * pooling, patch, columns * pooling, patch, 3)
    return array.transpose(0, 2, 1, 3, 4).reshape(-1, 3 * patch**2), (rows, columns)


def load_patches(sources: Sequence[ImageSource], patch: int, pooling: int, max_tokens: int) -> dict[str, Tensor]:
    """`image_patches` of several pictures.

    Returns:
        ``pixels`` uint8 ``[images, patches, 3 p²]``, zero behind an image's last patch, and ``grids`` int64
        ``[images, 2]``, rows and columns of visual tokens.

    Raises:
        DispError: an image cannot be read.
    """
    patches = [image_patches(open_image(source), patch, pooling, max_tokens) for source in sources]
    longest = max((len(each) for each, _ in patches), default=0)
    pixels = np.zeros((len(patches), longest, 3 * patch**2), np.uint8)
    for index, (each, _) in enumerate(patches):
        pixels[index, : len(each)] = each
    grids = torch.tensor([grid for _, grid in patches], dtype=torch.int64).reshape(-1, 2)
    return {"pixels": torch.from_numpy(pixels), "grids": grids}


def patch_positions(grids: Tensor, pooling: int, count: int) -> Tensor:
    """Column and row of each patch, int64 ``[images, count, 2]``, -1 behind an image's last patch.

    Args:
        grids: int64 ``[images, 2]``, rows and columns of visual tokens.
        pooling: patches along a side of a visual token.
        count: patches a picture, padding included.
    """
    place = torch.arange(count, device=grids.device).expand(len(grids), count)
    columns = grids[:, 1:] * pooling
    positions = torch.stack((place % columns, place // columns), dim=-1)
    return positions.masked_fill((place >= grids.prod(-1, keepdim=True) * pooling**2)[..., None], -1)
