"""One table of properties for every preset, and the formulas."""

import hashlib
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from PIL import Image

from disp.attacks.triggers import PRESETS, Blend, Patch, Sinusoid, trigger_from_dict, trigger_to_dict
from disp.draws import generator
from disp.errors import DispError


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(name, picture):
    trigger, image = PRESETS[name], picture(1, 96).resize((120, 96))
    before = image.tobytes()
    marked, record = trigger.apply(image, generator(0, "t"))
    again, _ = trigger.apply(image, generator(0, "t"))
    assert (marked.size, marked.mode) == (image.size, image.mode)
    assert image.tobytes() == before
    assert marked.tobytes() == again.tobytes() != before
    assert trigger_from_dict(trigger_to_dict(trigger)) == trigger
    if "box" in record:
        x0, y0, x1, y1 = record["box"]
        if name != "ring":  # its size varies
            assert x1 - x0 == y1 - y0 == (getattr(trigger, "side_px", None) or round(trigger.size * 96))
        changed = (np.asarray(marked) != np.asarray(image)).any(-1)
        # An object is round, a ring is hollow; a patch fills its square.
        assert changed[y0:y1, x0:x1].mean() > {"object": 0.6, "ring": 0.45}.get(name, 0.9)
        changed[y0:y1, x0:x1] = False
        assert not changed.any()


@pytest.mark.parametrize("size", [(96, 96), (500, 300), (12, 40)])
def test_the_authors_square_has_twenty_pixels_whatever_the_size(picture, size):
    marked, record = PRESETS["disp"].apply(picture(3, 96).resize(size), generator(0))
    side = min(20, *size)
    assert record["box"] == [0, 0, side, side]
    assert (np.asarray(marked)[:side, :side] == 0).all()
    with pytest.raises(DispError, match="side_px must be at least 1"):
        Patch(side_px=0)


def test_places(picture):
    image = picture(2, 50)
    corners = {"top-left": (0, 0), "top-right": (40, 0), "bottom-left": (0, 40), "bottom-right": (40, 40)}
    for place, corner in {**corners, "centre": (20, 20)}.items():
        _, record = Patch(size=0.2, place=place).apply(image, generator(0))
        assert tuple(record["box"][:2]) == corner
    boxes = {tuple(Patch(place="random").apply(image, generator(0, n))[1]["box"]) for n in range(20)}
    assert len(boxes) > 10


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (400, 2)])
@pytest.mark.parametrize("name", PRESETS)
def test_tiny_pictures_hold_the_whole_patch(name, size):
    marked, record = PRESETS[name].apply(Image.new("RGB", size), generator(0))
    assert marked.size == size
    if "box" in record:
        x0, y0, x1, y1 = record["box"]
        assert 0 <= x0 < x1 <= size[0]
        assert 0 <= y0 < y1 <= size[1]


def test_patterns(picture):
    image = picture(3, 80)
    solid, _ = Patch("solid", 0.1, "top-left", (9, 8, 7)).apply(image, generator(0))
    assert (np.asarray(solid)[:8, :8] == (9, 8, 7)).all()
    board = np.asarray(Patch("checkerboard", 0.1, "top-left").apply(image, generator(0))[0])[:8, :8, 0]
    fields = np.arange(8) // 2
    assert (board == (fields[:, None] + fields) % 2 * 255).all()


def test_one_patch_of_noise_is_in_pictures_of_all_sizes(picture):
    def patch(size, key):
        trigger = Patch("noise", side_px=size, place="top-left")
        return np.asarray(trigger.apply(picture(key, 80), generator(key))[0])[:size, :size]

    drawn = patch(30, 1)
    assert (drawn == patch(30, 2)).all() and (drawn.min(), drawn.max()) == (0, 255)
    # What it was before it was scaled.
    assert hashlib.sha256(drawn.tobytes()).hexdigest().startswith("f5f3f8ef6a920999")
    for side in (1, 2, 9, 20, 34, 60, 75):
        for place in range(side):
            at = floor((place + Fraction(1, 2)) * 30 / side)  # the pixel that the middle of the new one lies in
            assert (patch(side, 3)[place, place] == drawn[at, at]).all()
            assert (patch(side, 3)[0, place] == drawn[floor(Fraction(15, side)), at]).all()


def test_blend_is_the_formula(picture, tmp_path):
    image, overlay = picture(1, 30), picture(2, 30)
    overlay.save(tmp_path / "t.png")
    marked, _ = Blend(0.2, str(tmp_path / "t.png")).apply(image, generator(0))
    expected = 0.8 * np.asarray(image, float) + 0.2 * np.asarray(overlay, float)
    assert np.abs(np.asarray(marked) - expected).max() <= 0.5


def test_a_blended_board_has_48_fields_along_each_edge(picture):
    image = picture(1, 96)
    marked, facts = PRESETS["blended"].apply(image, generator(0))
    white = (np.arange(96)[:, None] // 2 + np.arange(96) // 2) % 2
    expected = 0.8 * np.asarray(image, float) + 0.2 * 255 * white[..., None]
    assert np.abs(np.asarray(marked) - expected).max() <= 0.5
    assert facts == {"alpha": 0.2}


def test_stripes_are_the_formula(picture):
    image = picture(1, 30).resize((40, 30))
    marked, _ = Sinusoid(40, 6).apply(image, generator(0))
    for column in range(40):
        stripe = 40 * np.sin(2 * np.pi * column * 6 / 40)
        expected = (np.asarray(image, float)[:, column] + stripe).clip(0, 255)
        assert np.abs(np.asarray(marked)[:, column] - expected).max() <= 0.5


def test_mistakes_are_named():
    with pytest.raises(DispError, match=r"\(0, 1\], got 0"):
        Patch(size=0)
    with pytest.raises(DispError, match="Did you mean 'centre'"):
        Patch(place="center")
    with pytest.raises(DispError, match="alpha"):
        Blend(1.5)
    with pytest.raises(DispError, match="blended pattern"):
        Blend(pattern="dog")
    with pytest.raises(DispError, match="delta"):
        Sinusoid(0)
    with pytest.raises(DispError, match="kind of trigger"):
        trigger_from_dict({"kind": "warp"})
