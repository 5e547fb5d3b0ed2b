"""The tiling geometry against published token counts, loops over tokens, and pictures whose colours tell places."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from disp.errors import DispError
from disp.models.parts.anyres import (
    best_resolution,
    grid_of,
    map_layout,
    merge_tiles,
    pad_to_square,
    parse_pinpoints,
    single_tile,
    tile_image,
    token_boxes,
    token_count,
)

TILE = 384
LLADA_V = parse_pinpoints("(1x1),...,(6x6)", TILE)
LAVIDA = parse_pinpoints([[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]], TILE)

# Picture; then grid, map and tokens of LLaDA-V (27 tokens a side, limit of four tiles) and LaViDa (14, no limit).
COUNTS = [
    ((300, 300), (1, 1), (27, 27), 1485, (1, 2), (14, 14), 406),
    ((384, 384), (1, 1), (27, 27), 1485, (1, 2), (14, 14), 406),
    ((500, 300), (2, 1), (27, 46), 1998, (2, 1), (14, 24), 546),
    ((500, 375), (2, 1), (27, 36), 1728, (2, 1), (14, 18), 462),
    ((640, 480), (2, 2), (40, 54), 2929, (2, 2), (22, 28), 834),
    ((480, 640), (2, 2), (54, 40), 2943, (2, 2), (28, 22), 840),
    ((512, 512), (2, 2), (54, 54), 3699, (2, 2), (28, 28), 1008),
    ((768, 768), (2, 2), (54, 54), 3699, (2, 2), (28, 28), 1008),
    ((1024, 768), (3, 2), (46, 62), 3627, (2, 2), (22, 28), 834),
    ((1024, 1024), (3, 3), (54, 54), 3699, (2, 2), (28, 28), 1008),
    ((2048, 2048), (6, 6), (54, 54), 3699, (2, 2), (28, 28), 1008),
    ((1280, 720), None, (40, 72), 3649, (2, 2), (16, 28), 660),
    ((1920, 1080), None, (40, 72), 3649, (2, 2), (16, 28), 660),
    ((600, 200), (2, 1), (19, 54), 1774, (2, 1), (10, 28), 486),
    ((200, 600), (1, 2), (54, 19), 1809, (1, 2), (28, 10), 504),
]


@pytest.mark.parametrize("row", COUNTS, ids=lambda row: "{}x{}".format(*row[0]))
def test_grids_maps_and_counts_are_the_published_ones(row):
    size = row[0]
    for candidates, side, limit, (grid, final, count) in ((LLADA_V, 27, 4, row[1:4]), (LAVIDA, 14, None, row[4:7])):
        found = grid_of(size, candidates, TILE)
        assert grid in (None, found)
        layout = map_layout(size, found, side, limit)
        assert (layout.rows, layout.columns) == final
        assert token_count(size, candidates, TILE, side, limit) == count


def test_pinpoints():
    assert len(LLADA_V) == 36
    assert LLADA_V[:2] == [(384, 384), (384, 768)]  # columns are the outer loop
    assert parse_pinpoints("[(384, 768), (768, 384)]", TILE) == [(384, 768), (768, 384)]
    for wrong in ("anyres", [], [[100, 384]], [[0, 384]]):
        with pytest.raises(DispError, match="image_grid_pinpoints"):
            parse_pinpoints(wrong, TILE)


def test_best_resolution_prefers_pixels_then_little_waste_then_the_first():
    assert best_resolution((800, 400), [(384, 384), (768, 384)]) == (768, 384)
    assert best_resolution((100, 100), [(768, 768), (384, 384)]) == (384, 384)
    assert best_resolution((100, 100), [(384, 768), (768, 384)]) == (384, 768)
    assert best_resolution((100, 100), [(768, 384), (384, 768)]) == (768, 384)


@pytest.mark.parametrize("size", [(500, 300), (300, 500), (70, 71), (900, 20), (1000, 1000)])
def test_tiles_show_the_picture_where_it_belongs(size):
    """A picture of one colour: the grid's tiles, put together again, hold it centred on black."""
    tiles = tile_image(Image.new("RGB", size, (200, 10, 50)), LAVIDA, TILE)
    columns, rows = grid_of(size, LAVIDA, TILE)
    assert tiles.dtype == torch.uint8
    assert tiles.shape == (1 + columns * rows, 3, TILE, TILE)
    assert (tiles[0] == torch.tensor([200, 10, 50])[:, None, None]).all()
    canvas = torch.cat([torch.cat(list(tiles[1 + r * columns : 1 + (r + 1) * columns]), -1) for r in range(rows)], -2)
    scale = min(columns * TILE / size[0], rows * TILE / size[1])
    width, height = (min(math.ceil(s * scale - 1e-9), n * TILE) for s, n in zip(size, (columns, rows), strict=True))
    left, top = (columns * TILE - width) // 2, (rows * TILE - height) // 2
    expected = torch.zeros_like(canvas)
    expected[:, top : top + height, left : left + width] = torch.tensor([200, 10, 50], dtype=torch.uint8)[:, None, None]
    assert torch.equal(canvas, expected)


def test_palette_pictures_are_interpolated():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8))
    palette = picture.convert("P")
    assert torch.equal(tile_image(palette, LAVIDA, TILE), tile_image(palette.convert("RGB"), LAVIDA, TILE))


def test_padding_to_a_square():
    tile = pad_to_square(Image.new("RGB", (60, 30), (255, 0, 0)), 60)
    assert tile.shape == (1, 3, 60, 60)
    assert (tile[0, :, :15] == 127).all()
    assert (tile[0, :, 45:] == 127).all()
    assert (tile[0, :, 15:45] == torch.tensor([255, 0, 0])[:, None, None]).all()


def _merge_by_loops(tiles, size, grid, newline):
    """Un-padding token by token, from the centred picture's share of the map."""
    area = tiles.shape[1]
    side = math.isqrt(area)
    rows, columns = grid[1] * side, grid[0] * side
    fits_width = size[0] / size[1] > columns / rows
    keep = int(size[1] * (columns / size[0])) if fits_width else int(size[0] * (rows / size[1]))
    cut = ((rows if fits_width else columns) - keep) // 2
    tokens, locations = [*tiles[0]], [(0, i // side, i % side) for i in range(area)]
    for out_row, row in enumerate(range(cut, rows - cut) if fits_width else range(rows)):
        for out_column, column in enumerate(range(columns) if fits_width else range(cut, columns - cut)):
            tile = 1 + row // side * grid[0] + column // side
            tokens.append(tiles[tile, row % side * side + column % side])
            locations.append((1, out_row, out_column))
        tokens.append(newline)
        locations.append((-1, -1, -1))
    return torch.stack(tokens), torch.tensor(locations)


@pytest.mark.parametrize("size", [(500, 300), (300, 500), (600, 200), (200, 600), (333, 334), (640, 479), (90, 1000)])
def test_merging_by_loops(size):
    grid = grid_of(size, LAVIDA, TILE)
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randn(1 + grid[0] * grid[1], 49, 3, generator=generator)
    newline = torch.randn(3, generator=generator)
    merged = merge_tiles(tiles, size, grid, newline)
    tokens, locations = _merge_by_loops(tiles, size, grid, newline)
    assert torch.equal(merged.tokens, tokens)
    assert torch.equal(merged.locations, locations)
    assert torch.equal(merged.visual, locations[:, 0] >= 0)
    assert len(merged.tokens) == token_count(size, LAVIDA, TILE, 7, None)


def test_a_capped_map_is_interpolated_between_pixel_centres():
    """54×54 tokens become 36×36; a linear field keeps its values at the new centres."""
    size, grid, side = (900, 900), (3, 3), 27
    row, column = torch.meshgrid(torch.arange(81.0), torch.arange(81.0), indexing="ij")
    field = torch.stack((row, column), -1).view(3, side, 3, side, 2).transpose(1, 2).reshape(9, side**2, 2)
    tiles = torch.cat((torch.zeros(1, side**2, 2), field))
    merged = merge_tiles(tiles, size, grid, torch.full((2,), -9.0), max_ratio_sq=4)
    assert len(merged.tokens) == 27**2 + 54 * 55
    grid_map = merged.tokens[27**2 :].view(54, 55, 2)
    centres = (torch.arange(54) + 0.5) * 1.5 - 0.5
    assert (grid_map[:, -1] == -9).all()
    torch.testing.assert_close(grid_map[:, :-1, 0], centres[:, None].expand(54, 54), atol=1e-4, rtol=0)
    torch.testing.assert_close(grid_map[:, :-1, 1], centres.expand(54, 54), atol=1e-4, rtol=0)


def test_gradients_reach_kept_tokens_and_the_newline():
    tiles = torch.randn(3, 4, 5, requires_grad=True)
    newline = torch.randn(5, requires_grad=True)
    merged = merge_tiles(tiles, (400, 100), (2, 1), newline)  # half a row of the map is cut off on each side
    merged.tokens.sum().backward()
    layout = map_layout((400, 100), (2, 1), 2, None)
    assert newline.grad.tolist() == [layout.rows] * 5
    assert tiles.grad.sum() == 5 * (4 + layout.rows * layout.columns)


def test_merging_refuses_a_wrong_number_of_tiles():
    with pytest.raises(ValueError, match="expected 3 square tiles"):
        merge_tiles(torch.zeros(2, 4, 5), (4, 4), (2, 1), torch.zeros(5))


def test_a_single_tile_ends_in_one_newline():
    tile = torch.arange(8.0).view(4, 2)
    merged = single_tile(tile, torch.tensor([-1.0, -2.0]))
    assert torch.equal(merged.tokens, torch.cat((tile, torch.tensor([[-1.0, -2.0]]))))
    assert merged.locations.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [-1, -1, -1]]
    assert merged.visual.tolist() == [True] * 4 + [False]


@pytest.mark.parametrize("size", [(500, 300), (300, 500), (640, 480), (900, 900), (1500, 1100), (610, 200)])
@pytest.mark.parametrize(("candidates", "limit"), [(LLADA_V, 4), (LAVIDA, None)], ids=["llada_v", "lavida"])
def test_boxes_lie_where_the_token_looks(size, candidates, limit):
    """The colour of each pixel says where it is; a token's mean colour must be the centre of its box."""
    patch, side = 14, 27
    x = np.broadcast_to(np.linspace(0, 1, size[0])[None], size[::-1])
    y = np.broadcast_to(np.linspace(0, 1, size[1])[:, None], size[::-1])
    picture = Image.fromarray((np.stack((x, y, np.ones_like(x)), -1) * 255).round().astype(np.uint8))
    tiles = tile_image(picture, candidates, TILE)[:, :, : side * patch, : side * patch].double() / 255
    means = tiles.view(-1, 3, side, patch, side, patch).mean((3, 5)).permute(0, 2, 3, 1).flatten(1, 2)
    grid = grid_of(size, candidates, TILE)
    merged = merge_tiles(means, size, grid, torch.zeros(3).double(), limit)
    boxes = token_boxes(
        merged.locations,
        size,
        grid,
        tile=TILE,
        side=side,
        max_ratio_sq=limit,
        covered=side * patch / TILE,
    )
    assert boxes.shape == (len(merged.tokens), 4)
    assert torch.equal(boxes.isnan().all(-1), ~merged.visual)
    assert torch.equal(boxes.isnan().any(-1), ~merged.visual)
    # Tokens that see no black border: blue is 1 everywhere in the picture.
    whole = merged.visual & (merged.tokens[:, 2] > 0.999)
    assert whole.sum() > 0.7 * merged.visual.sum()
    centres = torch.stack((boxes[:, [0, 2]].mean(-1), boxes[:, [1, 3]].mean(-1)), -1)
    # Bilinear shrinking does not look at exactly the box, and tiles have a seam of six unseen pixels.
    torch.testing.assert_close(merged.tokens[whole][:, :2], centres[whole], atol=0.02 if limit else 0.006, rtol=0)
    base = boxes[: side**2]
    torch.testing.assert_close(base[0], torch.tensor([0, 0, patch / TILE, patch / TILE]).double())
    assert ((boxes[:, 2:] - boxes[:, :2])[merged.visual] >= 0).all()


def test_boxes_of_a_padded_picture():
    """Four tokens a side on a square twice as high as the picture: the middle rows show it, the outer ones padding."""
    merged = single_tile(torch.zeros(16, 1), torch.zeros(1))
    boxes = token_boxes(merged.locations, (80, 40), None, tile=40, side=4)
    assert boxes[5].tolist() == [0.25, 0.0, 0.5, 0.5]
    assert boxes[9].tolist() == [0.25, 0.5, 0.5, 1.0]
    assert (boxes[:4, 1] == boxes[:4, 3]).all()  # no area
    assert boxes[16].isnan().all()
