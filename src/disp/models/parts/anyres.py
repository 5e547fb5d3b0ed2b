"""Pictures of any resolution as tiles, and the tiles' tokens as one sequence: the "anyres" geometry of LLaVA-NeXT.

LLaDA-V and LaViDa share it. A picture becomes a base tile, which shows all of it squeezed into a square, and a grid of
tiles of the picture at its own aspect, centred on black. The tokens of the grid are laid out as one map, the rows and
columns that show only black are cut off, and a newline vector ends each row.

Sizes are (width, height) in pixels, grids (columns, rows) of tiles; maps are (rows, columns) of tokens, as tensors are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from disp.errors import DispError

Size = tuple[int, int]

# A map is made smaller only where it exceeds its limit by this factor on each side.
_SLACK = 1.1


class MapLayout(NamedTuple):
    """What is kept of the map of a grid's tokens.

    Attributes:
        top, left: rows and columns that are cut off before the first that is kept (and as many after the last).
        height, width: rows and columns that are kept.
        rows, columns: of the final map, which may have been made smaller.
    """

    top: int
    left: int
    height: int
    width: int
    rows: int
    columns: int


class Merged(NamedTuple):
    """The tokens of one picture, in the order in which the language model reads them.

    Attributes:
        tokens: ``[n, d]``, newline vectors included.
        locations: int64 ``[n, 3]``: tile (0 the base tile, 1 the map of all others), row and column; -1 at newlines.
        visual: bool ``[n]``, false at newlines.
    """

    tokens: Tensor
    locations: Tensor
    visual: Tensor


# --- geometry, without pixels -----------------------------------------------------------------------------------------


def parse_pinpoints(value: str | Sequence[Sequence[int]], tile: int) -> list[Size]:
    """A config's ``image_grid_pinpoints`` as candidate sizes in pixels.

    Args:
        value: ``"(1x1),...,(6x6)"``, which means every grid from the first to the last, columns outermost; or pairs of
            pixels, as a list or in text.
        tile: the side of a tile, S.

    Raises:
        DispError: it is neither, or a side is no positive multiple of the tile.
    """
    if isinstance(value, str):
        sign = "x" if "x" in value else ","
        pairs = [(int(a), int(b)) for a, b in re.findall(rf"\(\s*(\d+)\s*{sign}\s*(\d+)\s*\)", value)]
        if pairs and sign == "x":
            (first_columns, first_rows), (last_columns, last_rows) = pairs[0], pairs[-1]
            pairs = [
                (columns * tile, rows * tile)
                for columns in range(first_columns, last_columns + 1)
                for rows in range(first_rows, last_rows + 1)
            ]
    else:
        pairs = [(int(width), int(height)) for width, height in value]
    if not pairs or any(side < tile or side % tile for pair in pairs for side in pair):
        raise DispError(
            f"image_grid_pinpoints {value!r}: expected '(1x1),...,(6x6)' or pairs of multiples of the tile's {tile} "
            "pixels; correct it in config.json"
        )
    return pairs


def best_resolution(size: Size, candidates: Sequence[Size]) -> Size:
    """The candidate that keeps most of a picture's pixels; among equals the one that wastes least, then the first."""
    width, height = size

    def merit(candidate: Size) -> tuple[int, int]:
        scale = min(candidate[0] / width, candidate[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - candidate[0] * candidate[1]

    return max(candidates, key=merit)


def grid_of(size: Size, candidates: Sequence[Size], tile: int) -> Size:
    """(columns, rows) of the tiles that a picture is cut into, without the base tile."""
    width, height = best_resolution(size, candidates)
    return width // tile, height // tile


def map_layout(size: Size, grid: Size, side: int, max_ratio_sq: int | None) -> MapLayout:
    """What is kept of the map of a grid's tokens, and its final size.

    Args:
        size: of the picture.
        grid: (columns, rows) of tiles.
        side: tokens on each side of a tile, g.
        max_ratio_sq: the map is made smaller until it holds about as many tokens as this many tiles; None for no limit.
    """
    width, height = size
    columns, rows = grid[0] * side, grid[1] * side
    top = left = 0
    if width / height > columns / rows:
        top = (rows - int(height * (columns / width))) // 2
    else:
        left = (columns - int(width * (rows / height))) // 2
    kept_rows, kept_columns = rows - 2 * top, columns - 2 * left
    final = kept_rows, kept_columns
    if max_ratio_sq is not None:
        shrink = math.sqrt(kept_rows * kept_columns / (max_ratio_sq * side**2))
        if shrink > _SLACK:
            final = int(kept_rows // shrink), int(kept_columns // shrink)
    return MapLayout(top, left, kept_rows, kept_columns, *final)


def token_count(size: Size, candidates: Sequence[Size], tile: int, side: int, max_ratio_sq: int | None) -> int:
    """How many tokens a picture becomes, newlines included; arguments as those of `best_resolution`, `map_layout`."""
    layout = map_layout(size, grid_of(size, candidates, tile), side, max_ratio_sq)
    return side**2 + layout.rows * (layout.columns + 1)


def _fitted(size: Size, canvas: Size) -> tuple[Size, Size]:
    """Size of a picture fitted into a canvas at its own aspect, and the place of its upper left corner."""
    width, height = size
    across, down = canvas[0] / width, canvas[1] / height
    if across < down:
        fitted = canvas[0], min(math.ceil(height * across), canvas[1])
    else:
        fitted = min(math.ceil(width * down), canvas[0]), canvas[1]
    return fitted, ((canvas[0] - fitted[0]) // 2, (canvas[1] - fitted[1]) // 2)


# --- pixels -----------------------------------------------------------------------------------------------------------


def tile_image(image: Image.Image, candidates: Sequence[Size], tile: int) -> Tensor:
    """A picture as tiles.

    Args:
        image: of any mode and size.
        candidates: the sizes of `parse_pinpoints`.
        tile: the side of a tile, S.

    Returns:
        uint8 ``[1 + columns * rows, 3, S, S]``: the base tile, then the grid's row by row.
    """
    image = image.convert("RGB")  # before resizing: a palette picture cannot be interpolated
    canvas_size = best_resolution(image.size, candidates)
    fitted, corner = _fitted(image.size, canvas_size)
    canvas = Image.new("RGB", canvas_size)
    canvas.paste(image.resize(fitted, Image.Resampling.BICUBIC), corner)
    base = _pixels(image.resize((tile, tile), Image.Resampling.BICUBIC))
    rows, columns = canvas_size[1] // tile, canvas_size[0] // tile
    tiles = _pixels(canvas).view(3, rows, tile, columns, tile).permute(1, 3, 0, 2, 4)
    return torch.cat((base[None], tiles.reshape(-1, 3, tile, tile)))


def pad_to_square(image: Image.Image, tile: int, fill: tuple[int, int, int] = (127, 127, 127)) -> Tensor:
    """A picture as one tile, centred on a square of ``fill``: what several pictures in one prompt are given.

    Returns:
        uint8 ``[1, 3, S, S]``.
    """
    image = image.convert("RGB")
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), fill)
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    return _pixels(square.resize((tile, tile), Image.Resampling.BICUBIC))[None]


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


# --- tokens -----------------------------------------------------------------------------------------------------------


def merge_tiles(tiles: Tensor, size: Size, grid: Size, newline: Tensor, max_ratio_sq: int | None = None) -> Merged:
    """The tokens of a picture's tiles as one sequence: the base tile's, then the map's with a newline after each row.

    Differentiable with respect to ``tiles`` and ``newline``.

    Args:
        tiles: float ``[1 + columns * rows, g * g, d]``, in the order of `tile_image`.
        size: of the picture.
        grid: (columns, rows) of tiles.
        newline: float ``[d]``.
        max_ratio_sq: see `map_layout`; None for no limit.

    Raises:
        ValueError: the number of tiles is not that of the grid.
    """
    count, area, width = tiles.shape
    side = math.isqrt(area)
    if count != 1 + grid[0] * grid[1] or side * side != area:
        raise ValueError(f"expected {1 + grid[0] * grid[1]} square tiles for a grid of {grid}, got {count} of {area}")
    layout = map_layout(size, grid, side, max_ratio_sq)
    # 1. The grid's tokens as a map [d, rows, columns].
    grid_map = tiles[1:].view(grid[1], grid[0], side, side, width).permute(4, 0, 2, 1, 3)
    grid_map = grid_map.reshape(width, grid[1] * side, grid[0] * side)
    # 2. Without the rows and columns that show padding only.
    grid_map = grid_map[:, layout.top : layout.top + layout.height, layout.left : layout.left + layout.width]
    # 3. Smaller, if it exceeds the limit.
    if (layout.rows, layout.columns) != (layout.height, layout.width):
        grid_map = F.interpolate(grid_map[None], (layout.rows, layout.columns), mode="bilinear")[0]
    # 4. A newline at the end of each row.
    column = newline.to(grid_map.dtype)[:, None, None].expand(width, layout.rows, 1)
    rows = torch.cat((grid_map, column), dim=-1)
    tokens = torch.cat((tiles[0], rows.flatten(1).T))
    locations = torch.cat((_places(0, side, side), _places(1, layout.rows, layout.columns, newline=True)))
    locations = locations.to(tiles.device)
    return Merged(tokens, locations, locations[:, 0] >= 0)


def single_tile(tile: Tensor, newline: Tensor) -> Merged:
    """The tokens of a picture that is one tile only (`pad_to_square`): ``[g * g, d]``, then one newline ``[d]``."""
    side = math.isqrt(len(tile))
    locations = F.pad(_places(0, side, side), (0, 0, 0, 1), value=-1).to(tile.device)
    return Merged(torch.cat((tile, newline.to(tile.dtype)[None])), locations, locations[:, 0] >= 0)


def _places(tile: int, rows: int, columns: int, newline: bool = False) -> Tensor:
    """int64 ``[rows * columns, 3]``: tile, row and column; with ``newline`` -1 after each row."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places = torch.stack((torch.full_like(row, tile), row, column), dim=-1)
    return (F.pad(places, (0, 0, 0, 1), value=-1) if newline else places).flatten(0, 1)


def token_boxes(
    locations: Tensor,
    size: Size,
    grid: Size | None,
    *,
    tile: int,
    side: int,
    max_ratio_sq: int | None = None,
    covered: float = 1.0,
) -> Tensor:
    """Where each token lies in the picture.

    Args:
        locations: int64 ``[n, 3]`` of `merge_tiles` or `single_tile`.
        size: of the picture.
        grid: (columns, rows) of tiles; None for a picture that is one tile on a square (`pad_to_square`).
        tile: the side of a tile in pixels, S.
        side: tokens on each side of a tile, g.
        max_ratio_sq: as in `merge_tiles`.
        covered: the part of a tile's side that its patches cover; 378/384 for patches of 14 pixels on 384.

    Returns:
        float64 ``[n, 4]``: x0, y0, x1, y1 as fractions of the picture, NaN at newlines. Tokens that show only padding
        have no area.
    """
    tiles, rows, columns = (part.double() for part in locations.cpu().unbind(-1))
    corners = torch.stack((columns, rows, columns + 1, rows + 1), dim=-1)  # [n, 4], in tokens
    base = corners / side * covered
    if grid is None:
        longest = max(size)
        margins = [(longest - size[0]) // 2, (longest - size[1]) // 2]
        boxes = (base * longest - torch.tensor(margins * 2)) / torch.tensor(size * 2)
    else:
        layout = map_layout(size, grid, side, max_ratio_sq)
        # 1. Tokens of the final map to tokens of the whole map.
        scale = [layout.width / max(layout.columns, 1), layout.height / max(layout.rows, 1)]
        whole = corners * torch.tensor(scale * 2) + torch.tensor([layout.left, layout.top] * 2)
        # 2. To pixels of the canvas. An upper edge at the border of two tiles belongs to the earlier one.
        whole = whole.round(decimals=9)
        index = torch.cat(((whole[:, :2] / side).floor(), (whole[:, 2:] / side).ceil() - 1), dim=-1)
        pixels = (index + (whole / side - index) * covered) * tile
        # 3. To fractions of the picture on it.
        fitted, corner = _fitted(size, (grid[0] * tile, grid[1] * tile))
        on_map = (pixels - torch.tensor([*corner] * 2)) / torch.tensor([*fitted] * 2)
        boxes = torch.where(tiles[:, None] == 0, base, on_map)
    return boxes.clamp(0, 1).masked_fill(tiles[:, None] < 0, torch.nan)
