"""LaViDa's visual tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from references.lavida import (
    TILE,
    make,
    noise,
)

from disp.errors import DispError
from disp.models.lavida.model import pool_tiles
from disp.models.parts.anyres import grid_of, token_count

SIZES = {(20, 20): (1, 2), (50, 28): (2, 1), (57, 56): (2, 2), (90, 40): (3, 1), (300, 60): (3, 1), (60, 300): (1, 3)}


@pytest.mark.parametrize(("size", "grid"), SIZES.items())
def test_a_picture_becomes_its_pooled_tiles_and_a_newline_a_row(model, size, grid):
    assert grid_of(size, model.config.candidates, TILE) == grid
    prefix = model.splice(torch.tensor([3, -200, 4]), [noise(*size)])
    count = token_count(size, model.config.candidates, TILE, 2, None)  # 4 patches a side, pooled to 2
    assert prefix.embeds.shape[1] == 2 + count
    places = prefix.locations[0, 1:-1]
    rows = len({(tile, row) for image, tile, row, _ in places.tolist() if tile == 1})
    visual = prefix.visual_mask[0]
    assert int(visual.sum()) == count - rows
    assert not visual[[0, -1]].any()
    assert len({tuple(place) for place in places[visual[1:-1]].tolist()}) == count - rows
    newlines = prefix.embeds[0, 1:-1][~visual[1:-1]]
    assert torch.equal(newlines, model.model.image_newline.expand(rows, -1))


def test_base_tile_tokens_by_hand(model):
    """Four projected patches averaged are a pooled token: what bilinear halving of an even side comes to."""
    picture = noise(TILE, TILE)
    prefix = model.splice(torch.tensor([-200]), [picture])
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].double() / 127.5 - 1
    tokens = model.model.mm_projector(model.model.vision_tower(pixels))[0].view(4, 4, -1)
    by_hand = [tokens[r : r + 2, c : c + 2].mean((0, 1)) for r in (0, 2) for c in (0, 2)]
    torch.testing.assert_close(prefix.embeds[0, :4], torch.stack(by_hand), atol=1e-6, rtol=1e-6)


def test_pooling_by_hand():
    tokens = torch.arange(9.0).view(1, 9, 1)
    # The new centres lie at 0.25 and 1.75 of three; row times three and column are linear, so values are too.
    bilinear = [3 * row + column for row in (0.25, 1.75) for column in (0.25, 1.75)]
    assert pool_tiles(tokens, "bilinear").flatten().tolist() == pytest.approx(bilinear)
    assert pool_tiles(tokens, "average").flatten().tolist() == [(0 + 1 + 3 + 4) / 4]
    assert pool_tiles(tokens, "max").flatten().tolist() == [4]
    assert pool_tiles(tokens, "none") is tokens
    assert pool_tiles(torch.zeros(3, 729, 2), "bilinear").shape == (3, 196, 2)
    assert pool_tiles(torch.zeros(3, 729, 2), "average").shape == (3, 169, 2)
    with pytest.raises(ValueError, match="pooling"):
        pool_tiles(tokens, "mean")


def test_without_pooling_every_patch_is_a_token():
    model = make(pooling="none")
    prefix = model.splice(torch.tensor([-200]), [noise(90, 40)])
    assert prefix.embeds.shape[1] == token_count((90, 40), model.config.candidates, TILE, 4, None)


def test_several_pictures_are_one_tile_and_one_newline_each(model):
    prefix = model.splice(torch.tensor([3, -200, 4, -200, 5]), [noise(90, 40), noise(30, 70)])
    assert prefix.visual_mask[0].int().tolist() == [0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0]
    assert prefix.locations[0, 1:5].tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert prefix.locations[0, 7:11, 0].tolist() == [1, 1, 1, 1]
    assert torch.equal(prefix.embeds[0, 5], model.model.image_newline)
    with pytest.raises(DispError, match="2 image placeholders"):
        model.splice(torch.tensor([-200, -200]), [noise(30, 30)])
