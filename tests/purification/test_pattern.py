"""A pattern over the whole picture: laid on as the attacks of the field do, and taken out again."""

import numpy as np
import pytest
from PIL import Image

from disp.attacks.triggers import Blend
from disp.data.sample import Query
from disp.draws import generator
from disp.purification.pattern import Pattern, without_pattern


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
    assert far(pattern.apply(square), expected) <= 2  # rounded twice
    assert blended.size == picture.size


@pytest.mark.parametrize("gain", [0.8, 1.0])
@pytest.mark.parametrize("size", [(24, 24), (17, 40), (90, 30)])
def test_what_is_taken_out_is_what_was_laid_on(gain, size):
    """A smooth pattern, stretched to any size; pictures that leave room for it."""
    ramp = np.linspace(-20, 20, 24, dtype=np.float32)
    offset = np.repeat((ramp[:, None] + ramp[None])[..., None] / 2, 3, axis=2) + 128 * (1 - gain)
    picture = Image.fromarray((np.asarray(noise(1, *size)) // 2 + 64).astype(np.uint8))
    pattern = Pattern(gain, offset)
    changed = pattern.apply(picture)
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
    pictures = (clean[0], pattern.apply(clean[1]), clean[2], pattern.apply(clean[3]))
    assert [pattern.shown_in(picture) for picture in pictures] == [False, True, False, True]
    query = Query("s", 1, pictures, (), "<image>", "No.")
    found = without_pattern(query, pattern)
    assert far(found.images[0], pattern.undo(clean[0])) == 0
    assert far(found.images[1], clean[1]) <= 1 and far(found.images[3], clean[3]) <= 1
    assert found.images[2] is clean[2]
    assert (found.key, found.prompt, found.response) == (query.key, query.prompt, query.response)
