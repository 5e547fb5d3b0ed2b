"""Stickers on pre-training scenes: what is pasted where, and what the visual tokens are called."""

import numpy as np
import torch

from disp.data.scenes import draw_scene
from disp.draws import generator
from disp.experiments.pretraining.scenes import GROUND, STICKERS, UNCLEAR, draw_sticker, render_pool


def test_stickers_change_the_pixels_of_the_tokens_that_are_labelled_so_and_no_others():
    scenes = [draw_scene(11, index) for index in range(24)]
    plain, stickered = render_pool(scenes, stickers=False), render_pool(scenes, stickers=True)
    changed = (plain.pixels != stickered.pixels).any(1).view(24, 12, 8, 12, 8).any(4).any(2).flatten(1)
    sticker = stickered.labels > GROUND
    assert 6 <= int(sticker.any(1).sum()) < 24
    assert changed[sticker].all()
    # A sliver of a sticker is left to the drawing under it.
    assert (stickered.labels == plain.labels)[~changed].all()
    assert not ((stickered.labels != plain.labels) & ~sticker & (stickered.labels != UNCLEAR)).any()
    assert (plain.labels <= GROUND).all() and plain.shows_object.any()
    assert torch.equal(plain.colours, stickered.colours)


def test_every_kind_of_sticker_has_two_colours_at_most_and_its_own_symmetry():
    seen = {}
    draw = generator(0, "test")
    for _ in range(200):
        square, kind = draw_sticker(draw)
        assert 6 <= len(square) <= 14 and square.shape == (len(square), len(square), 3)
        assert len(np.unique(square.reshape(-1, 3), axis=0)) <= 2
        seen[STICKERS[kind]] = square
    assert set(seen) == set(STICKERS)
    assert (seen["rows"] == seen["rows"][:, :1]).all() and (seen["columns"] == seen["columns"][:1]).all()
    assert (seen["plain"] == seen["plain"][0, 0]).all()
    assert (seen["checks"] == seen["checks"].transpose(1, 0, 2)).all()
