"""Where tokens lie in a picture, and which region a few of them make."""

import numpy as np
import pytest
import torch

from disp.auditing.carriers import region_around
from disp.auditing.saliency_map import saliency_map
from disp.models.parts.places import raster_boxes


def boxes_of(places):
    """Of several pictures' tokens."""
    places = np.asarray(places)
    boxes = np.zeros((len(places), 4))
    for image in np.unique(places[:, 0]):
        inside = places[:, 0] == image
        boxes[inside] = raster_boxes(torch.from_numpy(places[inside, 1:]))
    return boxes


def raster(rows, columns, image=0, tile=0):
    return [(image, tile, row, column) for row in range(rows) for column in range(columns)]


def test_the_boxes_of_a_raster_tile_the_picture_without_gap_or_overlap():
    places = np.array(raster(3, 5))
    boxes = boxes_of(places)
    for (_, _, row, column), box in zip(places, boxes, strict=True):
        np.testing.assert_allclose(box, [column / 5, row / 3, (column + 1) / 5, (row + 1) / 3])
    assert ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum() == pytest.approx(1)


def test_rasters_of_several_tiles_and_images_do_not_disturb_one_another():
    parts = [raster(2, 2), raster(4, 6, tile=1), raster(3, 3, image=1)]
    whole = boxes_of(np.array([place for part in parts for place in part]))
    np.testing.assert_allclose(whole, np.concatenate([boxes_of(np.array(part)) for part in parts]))
    order = np.random.default_rng(0).permutation(len(whole))
    shuffled = np.array([place for part in parts for place in part])[order]
    np.testing.assert_allclose(boxes_of(shuffled), whole[order])


def test_no_tokens_have_no_boxes():
    assert raster_boxes(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 4)


def region(chosen, side=8, scores=None, places=None):
    places = places or raster(side, side)
    return region_around(places, boxes_of(places), chosen, np.ones(len(places)) if scores is None else scores, 2)


def test_a_region_is_one_token_wider_than_its_tokens():
    image, box = region([3 * 8 + 4])
    assert image == 0
    assert box == pytest.approx((3 / 8, 2 / 8, 6 / 8, 5 / 8))
    _, box = region([3 * 8 + 4, 4 * 8 + 5])
    assert box == pytest.approx((3 / 8, 2 / 8, 7 / 8, 6 / 8))


@pytest.mark.parametrize(
    ("token", "expected"), [(0, (0, 0, 2 / 8, 2 / 8)), (7, (6 / 8, 0, 1, 2 / 8)), (63, (6 / 8, 6 / 8, 1, 1))]
)
def test_a_region_ends_where_the_picture_ends(token, expected):
    assert region([token])[1] == pytest.approx(expected)


def test_a_stray_token_is_left_out_and_a_chain_is_followed():
    scores = np.zeros(64)
    scores[0] = 1
    # A chain 0, 2, 4 of tokens two apart; 63 lies alone.
    assert region([63, 4, 2, 0], scores=scores)[1] == pytest.approx((0, 0, 6 / 8, 2 / 8))
    scores[63] = 2
    assert region([63, 4, 2, 0], scores=scores)[1] == pytest.approx((6 / 8, 6 / 8, 1, 1))


def test_a_region_lies_in_the_raster_of_its_most_salient_token():
    places = [*raster(2, 2), *raster(4, 4, tile=1), *raster(4, 4, image=1)]
    scores = np.zeros(len(places))
    scores[4 + 16 + 5] = 1  # row 1, column 1 of the second picture
    image, box = region([0, 4 + 5, 4 + 16 + 5], scores=scores, places=places)
    assert image == 1
    assert box == pytest.approx((0, 0, 3 / 4, 3 / 4))


def test_one_token_for_a_whole_picture_is_the_whole_picture():
    assert region([0], side=1)[1] == (0, 0, 1, 1)


@pytest.mark.parametrize("side", [6, 8, 12, 24])
def test_a_map_repeats_the_tokens_of_a_raster_that_divides_it(side):
    values = np.random.default_rng(0).random(side**2)
    found = saliency_map([(boxes_of(raster(side, side)), values)])
    expected = values.reshape(side, side).repeat(24 // side, 0).repeat(24 // side, 1)
    np.testing.assert_allclose(found, expected / expected.sum())


@pytest.mark.parametrize("side", [5, 25, 27, 48])
def test_no_token_of_any_raster_gets_lost_in_the_map(side):
    places = np.array(raster(side, side))
    for token in np.random.default_rng(0).permutation(side**2)[:20]:
        values = np.zeros(side**2)
        values[token] = 1
        found = saliency_map([(boxes_of(places), values)])
        assert found.sum() == pytest.approx(1)
        row, column = np.array(np.unravel_index(found.argmax(), found.shape))
        _, _, y, x = places[token]
        assert abs((row + 0.5) / 24 - (y + 0.5) / side) <= 0.5 / 24 + 0.5 / side
        assert abs((column + 0.5) / 24 - (x + 0.5) / side) <= 0.5 / 24 + 0.5 / side


def test_a_map_is_the_mean_of_the_samples_maps_whatever_their_scale():
    places = np.array(raster(6, 6))
    first, second = np.random.default_rng(1).random((2, 36))
    found = saliency_map(
        [(boxes_of(places), first), (boxes_of(places), 100 * second), (boxes_of(places), np.zeros(36))]
    )
    expected = (saliency_map([(boxes_of(places), first)]) + saliency_map([(boxes_of(places), second)])) / 3
    np.testing.assert_allclose(found, expected)
