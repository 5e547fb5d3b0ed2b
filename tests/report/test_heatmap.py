import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from disp.report.heatmap import mean_map, overlay, pixel_boxes, value_limits
from disp.report.picture import heat_map


def raster(rows, columns):
    return [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]


def grey(size):
    return Image.new("RGB", size, (128, 128, 128))


def over_grey(layer):
    return np.asarray(Image.alpha_composite(grey(layer.size).convert("RGBA"), layer).convert("RGB"))


def test_one_raster_is_the_heat_map_of_the_matrix():
    scores = np.random.default_rng(0).random((3, 5))
    got = overlay(grey((100, 60)), raster(3, 5), scores.ravel().tolist())
    assert (got.mode, got.size) == ("RGB", (100, 60))
    assert np.abs(np.asarray(got).astype(int) - over_grey(heat_map(scores, (100, 60)))).max() <= 2


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_a_raster_covers_every_pixel_once(width, height, rows, columns):
    if rows > height or columns > width:
        return
    counts = np.zeros((height, width), int)
    for x0, y0, x1, y1 in pixel_boxes(raster(rows, columns), (width, height)):
        counts[y0:y1, x0:x1] += 1
    assert (counts == 1).all()


def test_overlapping_tiles_show_the_maximum_and_gaps_the_picture():
    # A base tile over the left three quarters, finer tiles over the upper left quarter; nothing on the right.
    draw = np.random.default_rng(1)
    base = [(0.375 * column, 0.5 * row, 0.375 * (column + 1), 0.5 * (row + 1)) for row in (0, 1) for column in (0, 1)]
    fine = [
        (0.125 * column, 0.125 * row, 0.125 * (column + 1), 0.125 * (row + 1))
        for row in range(4)
        for column in range(4)
    ]
    boxes, values = [*base, *fine], draw.random(20)
    size = (64, 48)
    got = np.asarray(overlay(grey(size), boxes, values.tolist()))
    expected = np.zeros((size[1], size[0]))
    covered = np.zeros_like(expected, bool)
    for y in range(size[1]):
        for x in range(size[0]):
            here = [
                value
                for (x0, y0, x1, y1), value in zip(boxes, values, strict=True)
                if x0 * size[0] <= x < x1 * size[0] and y0 * size[1] <= y < y1 * size[1]
            ]
            covered[y, x] = bool(here)
            expected[y, x] = max(here, default=0)
    assert covered.mean() == 0.75
    assert (got[~covered] == 128).all()
    # The palette's own places: lowest value cold, highest hot.
    low, high = values.min(), values.max()
    # Two more cells carry the ends of the scale, so that the reference has the same one.
    reference = np.vstack((np.where(covered, expected, low), np.full((1, size[0]), low)))
    reference[-1, 0] = high
    layer = heat_map(reference, (size[0], size[1] + 1)).crop((0, 0, *size))
    assert np.abs(got.astype(int) - over_grey(layer))[covered].max() <= 2


def test_masked_tokens_are_outlined_as_one_shape():
    # Token 5 and its right neighbour, and one in the corner, in a raster of four by four on 80 pixels.
    got = np.asarray(overlay(grey((80, 80)), raster(4, 4), [0.0] * 16, masked=[5, 6, 15]))
    plain = np.asarray(overlay(grey((80, 80)), raster(4, 4), [0.0] * 16))
    white = (got == 255).all(-1)
    expected = np.zeros((80, 80), bool)
    for x0, y0, x1, y1 in ((20, 20, 60, 40), (60, 60, 80, 80)):
        expected[y0:y1, x0:x1] = True
        expected[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = False
    assert (white == expected).all()
    assert (got[19, 20:60] == 0).all() and (got[21, 21:59] == 0).all()
    assert (got[25, 25:55] == plain[25, 25:55]).all()  # inside, the saliency shows, also between neighbours


def test_images_share_a_scale_when_told():
    values = [0.2, 0.4]
    halves = [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]
    own = np.asarray(overlay(grey((8, 4)), halves, values))
    shared = np.asarray(overlay(grey((8, 4)), halves, values, limits=(0.2, 2.0)))
    assert (own[0, 0] == shared[0, 0]).all()
    assert own[0, 7].sum() > shared[0, 7].sum()


def test_values_that_are_not_finite_are_cold():
    halves = [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]
    cold = np.asarray(overlay(grey((8, 4)), [*halves, (0, 0, 0, 0)], [1.0, 0.0, 0.0]))
    got = np.asarray(overlay(grey((8, 4)), [*halves, (0, 0, 0, 0)], [1.0, float("nan"), 0.0]))
    assert (got == cold).all()
    assert value_limits([float("nan"), float("inf")]) == (0.0, 0.0)
    assert value_limits([]) == (0.0, 0.0)


def test_boxes_outside_the_picture_are_cut_off():
    boxes = [(-0.5, 0, 0.25, 1), (0.75, 0, 1e9, 1), (2, 2, 3, 3)]
    got = np.asarray(overlay(grey((8, 4)), boxes, [1.0, 1.0, 5.0], masked=[2]))
    assert (got[:, 2:6] == 128).all()
    assert (got[:, :2] != 128).any(-1).all() and (got[:, 6:] != 128).any(-1).all()


def test_a_token_smaller_than_a_pixel_is_seen():
    box = pixel_boxes([(0.501, 0.501, 0.502, 0.502)], (10, 10))[0]
    assert box.tolist() == [5, 5, 6, 6]
    assert pixel_boxes([(0.98, 0, 0.99, 1)], (10, 10))[0].tolist() == [9, 0, 10, 10]


def test_the_picture_is_not_changed_and_no_token_is_no_error():
    image = Image.new("RGB", (6, 6), (10, 200, 30))
    got = overlay(image, [], [])
    assert image.getpixel((0, 0)) == (10, 200, 30)
    assert got.size == (6, 6)


@pytest.mark.parametrize(
    ("boxes", "values", "masked", "message"),
    [
        ([(0, 0, 1, 1)], [1.0, 2.0], [], "1 boxes need as many values"),
        ([(0, 0, 1, 1)], [1.0], [1], "masked index 1"),
        ([(0, 0, 1, 1)], [1.0], [-1], "masked index -1"),
        ([(0, 0, 1)], [1.0], [], "four finite numbers"),
        ([(0, 0, 1, float("nan"))], [1.0], [], "four finite numbers"),
    ],
)
def test_what_does_not_fit_is_refused(boxes, values, masked, message):
    with pytest.raises(ValueError, match=message):
        overlay(grey((4, 4)), boxes, values, masked=masked)


def test_mean_map_is_opaque_and_hottest_at_the_peak():
    values = np.zeros((2, 3))
    values[1, 2] = 1.0
    picture = mean_map(values, (30, 20))
    light = np.asarray(picture.convert("L")).astype(int)
    rows, columns = np.nonzero(light == light.max())
    assert (picture.mode, rows.min(), rows.max(), columns.min(), columns.max()) == ("RGB", 10, 19, 20, 29)
