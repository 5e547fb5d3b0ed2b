"""Carriers: taken out of what a model is asked, and planted in another picture.

A pattern is laid on as the attacks of the field do; a region is pasted.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from disp.attacks.triggers import Blend
from disp.data.sample import Query
from disp.draws import generator
from disp.suspicion.carriers import Pattern, Region, Tokens


def noise(seed, *size):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def far(one, other):
    return np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).max()


def test_blending_is_a_gain_and_an_offset():
    picture, trigger = noise(0, 40, 60), Blend(0.2)
    blended, _ = trigger.apply(picture, generator(0, "x"))
    black, _ = trigger.apply(Image.new("RGB", (60, 60)), generator(0, "x"))
    square = picture.resize((60, 60))
    pattern = Pattern(0.8, np.asarray(black, np.float32))
    expected, _ = trigger.apply(square, generator(0, "x"))
    assert far(pattern.planted_in(square), expected) <= 2  # rounded twice
    assert blended.size == picture.size


@pytest.mark.parametrize("gain", [0.8, 1.0])
@pytest.mark.parametrize("size", [(24, 24), (17, 40), (90, 30)])
def test_what_is_taken_out_is_what_was_laid_on(gain, size):
    """A smooth pattern, stretched to any size; pictures that leave room for it."""
    ramp = np.linspace(-20, 20, 24, dtype=np.float32)
    offset = np.repeat((ramp[:, None] + ramp[None])[..., None] / 2, 3, axis=2) + 128 * (1 - gain)
    picture = Image.fromarray((np.asarray(noise(1, *size)) // 2 + 64).astype(np.uint8))
    pattern = Pattern(gain, offset)
    changed = pattern.planted_in(picture)
    assert changed.size == picture.size
    assert far(changed, picture) > 15
    assert far(pattern.undo(changed), picture) <= 1.0


def test_the_pattern_is_shown_with_all_its_contrast():
    shown = np.asarray(Pattern(1.0, np.linspace(-3, 9, 300, dtype=np.float32).reshape(10, 10, 3)).picture())
    assert (shown.min(), shown.max()) == (0, 255)
    assert not np.asarray(Pattern(1.0, np.zeros((4, 4, 3), np.float32)).picture()).any()


def test_it_is_taken_out_of_every_picture_that_shows_it():
    """Of the first in any case: it was compared with others, and betrayed the pattern."""
    pattern = Pattern(1.0, np.asarray(noise(4, 24, 24), np.float32) / 4)
    clean = [Image.fromarray(np.asarray(noise(seed, 48, 36)) // 2) for seed in range(4)]
    pictures = (clean[0], pattern.planted_in(clean[1]), clean[2], pattern.planted_in(clean[3]))
    assert [pattern.shown_in(picture) for picture in pictures] == [False, True, False, True]
    query = Query("s", 1, pictures, (), "<image>", "No.")
    found = pattern.taken_out_of(query)
    assert far(found.images[0], pattern.undo(clean[0])) == 0
    assert far(found.images[1], clean[1]) <= 1 and far(found.images[3], clean[3]) <= 1
    assert found.images[2] is clean[2]
    assert (found.key, found.prompt, found.response) == (query.key, query.prompt, query.response)


@pytest.mark.parametrize("box", [(0.25, 0.5, 0.75, 1.0), (0.0, 0.0, 1.0, 1.0), (0.5, 0.25, 0.55, 0.3)])
def test_pixels_inside_the_box_are_the_donors_and_all_others_stay(box):
    donor, picture = noise(1, 20, 40), noise(2, 20, 40)
    before = np.array(picture)
    found = np.array(Region("d", donor, box).planted_in(picture))
    columns, rows = np.arange(40), np.arange(20)
    inside = np.outer(
        (rows >= round(box[1] * 20)) & (rows < round(box[3] * 20)),
        (columns >= round(box[0] * 40)) & (columns < round(box[2] * 40)),
    )
    np.testing.assert_array_equal(found[inside], np.array(donor)[inside])
    np.testing.assert_array_equal(found[~inside], before[~inside])
    np.testing.assert_array_equal(np.array(picture), before)  # the picture itself is left as it was


def test_in_a_picture_of_another_size_the_region_keeps_its_place_and_share():
    donor = Image.new("RGB", (60, 30), (10, 20, 30))
    region = Region("d", donor, (1 / 3, 1 / 3, 2 / 3, 1.0))
    found = np.array(region.planted_in(Image.new("RGB", (12, 90))))
    changed = (found == (10, 20, 30)).all(-1)
    expected = np.zeros((90, 12), bool)
    expected[30:90, 4:8] = True
    np.testing.assert_array_equal(changed, expected)
    assert not found[~changed].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2)])
@pytest.mark.parametrize("box", [(0.9, 0.9, 1.0, 1.0), (0.0, 0.0, 0.001, 0.001), (0.5, 0.5, 0.5, 0.5)])
def test_a_region_is_at_least_one_pixel_and_never_outside(size, box):
    region = Region("d", noise(1, *size[::-1]), box)
    assert min(region.picture().size) >= 1
    assert region.planted_in(noise(2, 5, 7)).size == (7, 5)
    assert Region("d", noise(1, 5, 7), box).planted_in(noise(2, *size[::-1])).size == size


def test_pictures_with_transparency_are_pasted_as_the_model_sees_them(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    found = np.array(Region("d", tmp_path / "clear.png", (0, 0, 0.5, 0.5)).planted_in(Image.new("L", (8, 8), 7)))
    assert (found[:4, :4] == (255, 0, 0)).all()
    assert (found[4:] == 7).all()


def test_tokens_are_masked_and_pictures_stay_as_they_are():
    query = Query("s", 0, (noise(0, 4, 4),), (), "<image>", "No.")
    visual = torch.tensor([False, True, True, False, True])
    tokens = Tokens((0, 2))
    assert tokens.taken_out_of(query) is query
    assert tokens.hidden(visual).tolist() == [False, True, False, False, True]
    assert not Tokens(()).hidden(visual).any()
    assert not Pattern(1.0, np.zeros((2, 2, 3), np.float32)).hidden(visual).any()
