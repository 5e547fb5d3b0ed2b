"""Dimple's pictures: cut into patches, and laid out on the three axes of positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from disp.errors import DispError

# A picture is squeezed to this aspect where it is longer than the one that the resizing rule takes.
_LONGEST, _SQUEEZED = 200, 180


def cut_into_patches(
    image: Image.Image, vision: Mapping[str, Any], processing: Mapping[str, Any]
) -> tuple[np.ndarray, tuple[int, int]]:
    """A picture cut into patches.

    Args:
        image: in RGB.
        vision: sizes of the tower, as in `disp.models.dimple.published.VISION`.
        processing: as in `disp.models.dimple.published.PROCESSING`.

    Returns:
        uint8 ``[n, 3 * patch * patch]``, the four patches of a visual token one after the other, visual tokens in
        raster order; and the grid of visual tokens, rows and columns.
    """
    patch, merge = vision["patch_size"], vision["spatial_merge_size"]
    # 1. What the resizing rule does not take.
    size = _squeezed(image.size, patch * merge)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    # 2. The nearest size in whole visual tokens.
    rows, columns = token_grid(image.size, vision, processing)
    size = columns * patch * merge, rows * patch * merge
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    # 3. Patches.
    pixels = np.asarray(image, dtype=np.uint8).reshape(rows, merge, patch, columns, merge, patch, 3)
    cut = pixels.transpose(0, 3, 1, 4, 6, 2, 5)  # row, column, row in it, column in it, channel, y, x
    return np.ascontiguousarray(cut).reshape(-1, 3 * patch * patch), (rows, columns)


def token_grid(size: tuple[int, int], vision: Mapping[str, Any], processing: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of the visual tokens of a picture: of the nearest size with a permitted number of pixels.

    Args:
        size: width and height of the picture.
        vision: as in `cut_into_patches`.
        processing: as in `cut_into_patches`.
    """
    side = vision["patch_size"] * vision["spatial_merge_size"]
    width, height = _squeezed(size, side)
    height, width = smart_resize(height, width, side, processing["min_pixels"], processing["max_pixels"])
    return height // side, width // side


def _squeezed(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height that the resizing rule takes, as the published data code prepares such pictures.

    Args:
        size: width and height.
        side: of a visual token, which the picture is not to be smaller than.
    """
    width, height = max(size[0], side), max(size[1], side)
    if width > _LONGEST * height:
        width = _SQUEEZED * height
    elif height > _LONGEST * width:
        height = _SQUEEZED * width
    return width, height


def normalise_patches(patches: Tensor, vision: Mapping[str, Any], processing: Mapping[str, Any]) -> Tensor:
    """uint8 ``[n, 3 * patch * patch]`` to what the tower reads, float32 ``[n, 3 * time * patch * patch]``.

    ``vision`` and ``processing`` are as in `cut_into_patches`.
    """
    mean = torch.tensor(processing["image_mean"], dtype=torch.float32, device=patches.device)[:, None]
    std = torch.tensor(processing["image_std"], dtype=torch.float32, device=patches.device)[:, None]
    pixels = patches.view(len(patches), 3, vision["patch_size"] ** 2)
    scaled = (pixels.double() * processing["rescale_factor"]).float()
    # The tower was made for videos too: a still picture is shown as two equal frames.
    frames = ((scaled - mean) / std)[:, :, None].expand(-1, -1, vision["temporal_patch_size"], -1)
    return frames.flatten(1)


def lay_out(token_ids: Tensor, attention_mask: Tensor, grids: Tensor, image_token_id: int) -> tuple[Tensor, Tensor]:
    """Where each token of a prompt is, on the position axes and in its image.

    Text counts up on all three axes at once. An image's tokens share one time; their rows and columns count from it,
    and the text behind goes on from the largest number so far.

    Args:
        token_ids: int64 ``[B, P]``.
        attention_mask: bool ``[B, P]``, false at padding.
        grids: int64 ``[images, 2]``, rows and columns of the visual tokens of all images of the batch, in order.
        image_token_id: stands at visual tokens.

    Returns:
        Positions int64 ``[B, P, 3]`` (time, row, column; 1 at padding) and locations int64 ``[B, P, 4]`` (image of
        the row, tile 0, row, column; -1 elsewhere).

    Raises:
        DispError: the image tokens are not as many as ``grids`` says.
    """
    batch, length = token_ids.shape
    positions = torch.ones((batch, length, 3), dtype=torch.int64)
    locations = torch.full((batch, length, 4), -1)
    shapes, used = grids.tolist(), 0
    rows = zip(token_ids.tolist(), attention_mask.tolist(), strict=True)
    for row, (ids, there) in enumerate(rows):
        place, following, image = 0, 0, 0
        while place < length:
            if not there[place]:
                place += 1
                continue
            if ids[place] != image_token_id:
                positions[row, place] = following
                place, following = place + 1, following + 1
                continue
            height, width = shapes[used] if used < len(shapes) else (1, 0)
            end = place + height * width
            if end == place or ids[place:end] != [image_token_id] * (height * width):
                raise DispError(
                    f"row {row}: the image tokens from position {place} do not match grid {shapes[used:][:1]}"
                )
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            zero = torch.zeros_like(y)
            positions[row, place:end] = following + torch.stack((zero, y, x), dim=-1).flatten(0, 1)
            locations[row, place:end] = torch.stack((zero + image, zero, y, x), dim=-1).flatten(0, 1)
            place, following, used, image = end, following + max(height, width), used + 1, image + 1
    if used < len(shapes):
        raise DispError(f"{len(shapes)} images, but image tokens for {used} of them")
    return positions.to(token_ids.device), locations.to(token_ids.device)


def mrope_table(positions: Tensor, head_dim: int, theta: float, sections: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions with three numbers a token (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Args:
        positions: int64 ``[B, T, 3]``.
        head_dim: width of one head.
        theta: base of the wavelengths.
        sections: how many of the ``head_dim / 2`` frequencies, fastest first, turn with each of the three numbers.

    Returns:
        Two float32 tensors ``[B, 1, T, head_dim]`` for `disp.models.parts.transformer.rotate`.
    """
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(list(sections))).to(positions.device)
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[..., axis].float() * (1.0 / theta**steps)
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()
