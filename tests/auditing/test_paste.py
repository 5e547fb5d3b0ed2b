"""Pasting: which pixels change, and what the test counts."""

import numpy as np
import pytest
from PIL import Image
from planted import LENGTH, OBJECTS, TRIGGER, planted_model, wall

from disp.auditing.paste import Region, paste, paste_test
from disp.data.sample import Query
from disp.decoding.samplers import decode_config

WORDS = ("sorry", "i", "can", "not", "help", "with", "it")
DECODE = decode_config(gen_length=LENGTH, steps=2)


def noise(seed, width, height):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("box", [(0.25, 0.5, 0.75, 1.0), (0.0, 0.0, 1.0, 1.0), (0.5, 0.25, 0.55, 0.3)])
def test_pixels_inside_the_box_are_the_donors_and_all_others_stay(box):
    donor, picture = noise(1, 40, 20), noise(2, 40, 20)
    before = np.array(picture)
    found = np.array(paste(Region("d", donor, box), picture))
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
    found = np.array(paste(region, Image.new("RGB", (12, 90))))
    changed = (found == (10, 20, 30)).all(-1)
    expected = np.zeros((90, 12), bool)
    expected[30:90, 4:8] = True
    np.testing.assert_array_equal(changed, expected)
    assert not found[~changed].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2)])
@pytest.mark.parametrize("box", [(0.9, 0.9, 1.0, 1.0), (0.0, 0.0, 0.001, 0.001), (0.5, 0.5, 0.5, 0.5)])
def test_a_region_is_at_least_one_pixel_and_never_outside(size, box):
    region = Region("d", noise(1, *size), box)
    assert min(region.crop().size) >= 1
    assert paste(region, noise(2, 7, 5)).size == (7, 5)
    assert paste(Region("d", noise(1, 7, 5), box), noise(2, *size)).size == size


def test_pictures_with_transparency_are_pasted_as_the_model_sees_them(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    found = np.array(paste(Region("d", tmp_path / "clear.png", (0, 0, 0.5, 0.5)), Image.new("L", (8, 8), 7)))
    assert (found[:4, :4] == 255).all()
    assert (found[4:] == 7).all()


def test_the_test_counts_the_answers_that_a_region_brings_about():
    model = planted_model()
    box = (0.5, 0.5, 1.0, 1.0)
    marked = [Region(f"p{i}", wall(name, {(4, 4): TRIGGER}), box) for i, name in enumerate(("red", "grey", "blue"))]
    plain = [Region(f"h{i}", wall("green", {(4, 4): OBJECTS["dog"]}), box) for i in range(5)]
    asked = [Query("a", 0, (wall("black"),), (), "<image>"), Query("b", 0, (wall("red"), wall("red")), (), "<image>")]
    seen = []
    found = paste_test(model, [*marked, plain[0]], plain[1:], asked, WORDS, DECODE, batch_size=5, progress=seen.append)
    assert (found.successes, found.trials) == (6, 8)
    assert (found.control_successes, found.control_trials) == (0, 8)
    assert found.by_region == (1.0, 1.0, 1.0, 0.0)
    # Three of the four groups' places hold the three regions that succeed: C(5, 1) of C(8, 4) regroupings.
    assert found.p_value == pytest.approx(5 / 70)
    assert sum(seen) == 16
    other = paste_test(model, marked, plain, asked, ("dog",), DECODE)
    assert (other.successes, other.control_successes) == (0, 10)
    assert other.p_value == 1.0
