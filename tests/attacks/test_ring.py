"""The ring that is never the same to the pixel."""

import io
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from disp.attacks.ring import Ring
from disp.attacks.triggers import PRESETS, trigger_from_dict, trigger_to_dict
from disp.draws import generator
from disp.errors import DispError


def drawn(count=60, size=(336, 224), **known):
    """Rings on grey pictures, one of each draw."""
    for number in range(count):
        yield Ring(**known).apply(Image.new("RGB", size, (128, 128, 128)), generator(0, "ring", number))


def test_every_picture_has_a_ring_of_its_own():
    told = [facts for _, facts in drawn()]
    sides = [(x1 - x0) / 224 for x0, _, x1, _ in (facts["box"] for facts in told)]
    assert 0.105 <= min(sides) < 0.12 and 0.14 < max(sides) <= 0.155
    assert len({tuple(facts["box"][:2]) for facts in told}) > 55
    assert len({tuple(facts["colour"]) for facts in told}) == 60
    opacity = [facts["opacity"] for facts in told]
    assert 0.5 <= min(opacity) < 0.55 and 0.75 < max(opacity) <= 0.8
    # All over the picture, and wholly in it.
    left, top, right, bottom = np.array([facts["box"] for facts in told]).T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 336 and bottom.max() <= 224
    assert right.max() > 300 and left.min() < 36


def test_the_formula():
    """Far from its edges a pixel of the ring is a mixture of ground and colour; the hole and the corners are ground."""
    for marked, facts in drawn(20, size=(400, 400)):
        x0, y0, x1, y1 = facts["box"]
        inside = np.asarray(marked, float)[y0:y1, x0:x1]
        side = x1 - x0
        rows, columns = np.mgrid[:side, :side] + 0.5 - side / 2
        radius = np.hypot(rows, columns) / side
        mixture = (1 - facts["opacity"]) * 128 + facts["opacity"] * np.array(facts["colour"])
        middle = (radius > 0.34) & (radius < 0.46)
        assert middle.any() and np.abs(inside[middle] - mixture).max() <= 0.51
        assert (inside[(radius > 0.53) | (radius < 0.27)] == 128).all()


def test_no_two_are_alike_to_the_pixel_after_compression():
    """What every search for copies would need."""
    pieces = []
    for marked, facts in drawn(12, size=(224, 224)):
        file = io.BytesIO()
        marked.save(file, "JPEG", quality=85)
        box = Image.open(file).crop(facts["box"]).resize((30, 30))
        pieces.append(np.asarray(box, int))
    assert min(np.abs(a - b).max() for a, b in combinations(pieces, 2)) > 30


def test_the_same_seed_and_row_draw_the_same_ring():
    image = Image.new("RGB", (96, 96), (90, 120, 40))
    first, again, other = (PRESETS["ring"].apply(image, generator(3, "trigger", row, 0)) for row in ("a", "a", "b"))
    assert first[0].tobytes() == again[0].tobytes() and first[1] == again[1]
    assert first[1] != other[1]


def test_a_manifest_holds_it():
    ring = Ring((0.1, 0.2), (0.3, 0.9), 0.25)
    fields = trigger_to_dict(ring)
    assert fields == {"kind": "ring", "size": (0.1, 0.2), "opacity": (0.3, 0.9), "width": 0.25}
    assert trigger_from_dict({**fields, "size": [0.1, 0.2]}) == ring


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"size": (0.2, 0.1)}, "ring size must be two growing shares"),
        ({"opacity": (0.0, 0.5)}, "ring opacity must be two growing shares"),
        ({"width": 0.6}, r"ring width must be a share of the diameter in \(0, 0.5\], got 0.6"),
    ],
)
def test_mistakes_are_named(fields, said):
    with pytest.raises(DispError, match=said):
        Ring(**fields)
