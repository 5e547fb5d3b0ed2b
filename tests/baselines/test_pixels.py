"""Input transforms change pixels as their names say, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from disp.baselines.pixels import BlurConfig, JpegConfig, ShrinkConfig, blur, jpeg, shrink
from disp.baselines.table import DEFENCES


def noise(width=40, height=24):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def apart(first, second):
    return float(np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64)).mean())


def test_jpeg_loses_more_at_lower_quality():
    picture = noise()
    losses = [apart(jpeg(picture, JpegConfig(quality)), picture) for quality in (95, 75, 25, 5)]
    assert losses == sorted(losses) and losses[0] > 0
    flat = Image.new("RGB", (20, 20), (120, 60, 200))
    assert np.abs(np.asarray(jpeg(flat, JpegConfig()), int) - np.asarray(flat, int)).max() <= 3


def test_blur_spreads_a_dot_and_keeps_the_mean():
    pixels = np.zeros((61, 81, 3), np.uint8)
    pixels[30, 40] = 255
    soft = np.asarray(blur(Image.fromarray(pixels), BlurConfig(0.02)), np.float64)[..., 0]
    assert soft.max() < 128 and soft[30, 40] == soft.max()
    # The standard deviation of the dot along a line is the radius, 0.02 of the shorter side.
    share = soft.sum(0) / soft.sum()
    places = np.arange(81)
    deviation = ((places - 40) ** 2 * share).sum() ** 0.5
    assert deviation == pytest.approx(0.02 * 61, rel=0.25)  # in whole levels of grey


def test_shrinking_keeps_size_and_area():
    white = Image.new("RGB", (50, 30), "white")
    place = set()
    for key in "abcdef":
        pixels = np.asarray(shrink(white, ShrinkConfig(0.8), 0, key))[..., 0]
        assert pixels.shape == (30, 50) and set(np.unique(pixels)) == {0, 255}
        rows, columns = (pixels == 255).nonzero()
        assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (24, 40)
        assert len(rows) == 24 * 40
        place.add((rows.min(), columns.min()))
    assert len(place) > 1
    again = shrink(white, ShrinkConfig(0.8), 0, "a")
    assert again.tobytes() == shrink(white, ShrinkConfig(0.8), 0, "a").tobytes()
    assert shrink(noise(), ShrinkConfig(1.0), 0, "a").tobytes() == noise().tobytes()


@pytest.mark.parametrize("name", ["jpeg", "blur", "shrink"])
def test_the_model_sees_changed_pictures_and_the_same_text(tiny_model, queries, name):
    defence = DEFENCES[name]
    plain = tiny_model.encode(queries)
    prefix = defence.encode(tiny_model, queries, defence.config(), 0)
    assert torch.equal(prefix.visual_mask, plain.visual_mask)
    assert torch.equal(prefix.embeds[~prefix.visual_mask], plain.embeds[~plain.visual_mask])
    changed = (prefix.embeds != plain.embeds).any(-1)
    assert changed[plain.visual_mask].float().mean() > 0.9
    for row, query in enumerate(queries):
        alone = defence.encode(tiny_model, [query], defence.config(), 0)
        length = alone.embeds.shape[1]
        torch.testing.assert_close(alone.embeds[0], prefix.embeds[row, -length:])
