"""Dimple's pictures."""

import pytest
import torch
from references.dimple import photo
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


@pytest.mark.parametrize(
    "size", [(640, 480), (480, 640), (57, 400), (1500, 1100), (28, 28), (30, 31), (333, 333)], ids=str
)
@pytest.mark.parametrize("limits", [(56 * 56, 28 * 28 * 1280), (56 * 56, 336 * 336), (200 * 200, 300 * 300)], ids=str)
def test_pixels_are_those_of_the_library(make_dimple, size, limits):
    model = make_dimple()
    model.config.processing |= {"min_pixels": limits[0], "max_pixels": limits[1]}
    patches, (rows, columns) = model.patches(photo(*size))
    library = Qwen2VLImageProcessorPil(min_pixels=limits[0], max_pixels=limits[1])(photo(*size), return_tensors="pt")
    assert library["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]
    assert model.pixel_values(torch.from_numpy(patches)).equal(library["pixel_values"])


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (28, 20_000)], ids=str)
def test_pictures_that_the_resizing_rule_does_not_take(model, size):
    patches, (rows, columns) = model.patches(photo(*size))
    assert len(patches) == 4 * rows * columns > 0


def test_an_image_alone_or_among_others_is_the_same_to_the_tower(model, dialogues):
    sources = [source for query in dialogues for source in query.images]
    alone = torch.cat([tensor.flatten(0, 1) for tensor in model.image_features(sources)])
    inputs = model.prepare(dialogues)
    together = model.vision_features(model.pixel_values(inputs["patches"]), inputs["grids"])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
