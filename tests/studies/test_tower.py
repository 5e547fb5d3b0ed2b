"""The vision tower with limited attention."""

import pytest
import torch

from disp.models.parts.vision import VisionTower

GRID, PATCH = 6, 4


@pytest.mark.parametrize("reach", [1, 2, None])
def test_a_patch_reaches_so_many_rows_and_columns_a_layer(reach):
    torch.manual_seed(0)
    layers = 2
    tower = VisionTower(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=GRID * PATCH,
        patch_size=PATCH,
        attention_reach=reach,
    )
    pixels = torch.rand(1, 3, GRID * PATCH, GRID * PATCH, requires_grad=True)
    for row, column in ((0, 0), (2, 3)):
        (slope,) = torch.autograd.grad(tower(pixels)[0, row * GRID + column].square().sum(), pixels)
        moved = slope[0].abs().sum(0).view(GRID, PATCH, GRID, PATCH).sum((1, 3)) > 0  # [row, column]
        far = layers * (GRID if reach is None else reach)
        rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
        assert torch.equal(moved, torch.maximum((rows - row).abs(), (columns - column).abs()) <= far)
