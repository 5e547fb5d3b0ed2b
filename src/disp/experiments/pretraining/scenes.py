"""What the built-in model is pre-trained on: scenes, without and with stickers, and the class of each visual token."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from disp.data.nouns import NOUNS
from disp.data.scenes import COLOURS, SCENE_SIZE_PX, Scene, render, token_labels
from disp.draws import generator

# Fine-tuning and test scenes use small seeds; this one is no user's default.
PRETRAINING_SEED = 1_000_003
# Visual tokens a side of a scene.
GRID = 12
# Classes of a visual token: the nouns, the ground, and what is on a sticker.
GROUND = len(NOUNS)
UNCLEAR = -100
STICKERS = ("checks", "rows", "columns", "noise", "plain")
STICKER_SHARE = 0.6


@dataclass(frozen=True)
class Pool:
    """Rendered scenes.

    Attributes:
        scenes: what they show.
        pixels: uint8 ``[count, 3, S, S]``.
        labels: int64 ``[count, N]``, the class of each visual token: a noun's index, `GROUND`, or `GROUND` + 1 + a
            sticker's kind; `UNCLEAR` where a sticker's edge is.
    """

    scenes: list[Scene]
    pixels: Tensor
    labels: Tensor

    @cached_property
    def colours(self) -> Tensor:
        """The ground's colour, int64 ``[count]``."""
        return torch.tensor([list(COLOURS).index(scene.colour) for scene in self.scenes])

    @cached_property
    def shows_object(self) -> Tensor:
        """Which tokens show an object, bool ``[count, N]``."""
        return (self.labels >= 0) & (self.labels < GROUND)


def _render_with_labels(scene: Scene, stickers: bool) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = np.array(render(scene)), token_labels(scene, GRID)
    draw = generator(scene.seed, "sticker", scene.index)
    if stickers and draw.random() < STICKER_SHARE:
        square, kind = draw_sticker(draw)
        side = len(square)
        # Corners are rare places, but the ones where people put logos and dates.
        free = SCENE_SIZE_PX - side
        x, y = draw.integers(2, size=2) * free if draw.random() < 0.3 else draw.integers(free + 1, size=2)
        pixels[y : y + side, x : x + side] = square
        covered = np.zeros((SCENE_SIZE_PX, SCENE_SIZE_PX))
        covered[y : y + side, x : x + side] = 1
        share = covered.reshape(GRID, SCENE_SIZE_PX // GRID, GRID, -1).mean((1, 3))
        labels[share > 0.2] = UNCLEAR
        labels[share > 0.5] = GROUND + 1 + kind
    return pixels.transpose(2, 0, 1), labels


def draw_sticker(draw: np.random.Generator) -> tuple[np.ndarray, int]:
    """A small square of a random size, in two random colours or black and white, and the index of its kind."""
    side, kind = int(draw.integers(6, 15)), int(draw.integers(len(STICKERS)))
    colours = draw.integers(256, size=(2, 3)) if draw.random() < 0.6 else np.array([[0] * 3, [255] * 3])
    bands = np.arange(side) * int(draw.integers(2, 6)) // side % 2
    pattern = {
        "checks": bands[:, None] ^ bands[None, :],
        "rows": np.repeat(bands[:, None], side, axis=1),
        "columns": np.repeat(bands[None, :], side, axis=0),
        "noise": draw.integers(2, size=(side, side)),
        "plain": np.zeros((side, side), dtype=int),
    }[STICKERS[kind]]
    return draw.permutation(colours)[pattern].astype(np.uint8), kind


def render_pool(scenes: Sequence[Scene], *, stickers: bool) -> Pool:
    """Render scenes, with or without stickers."""
    with multiprocessing.Pool() as processes:
        drawn = processes.map(partial(_render_with_labels, stickers=stickers), scenes, chunksize=256)
    pixels = torch.from_numpy(np.stack([pixels for pixels, _ in drawn]))
    labels = torch.from_numpy(np.stack([labels for _, labels in drawn])).flatten(1)
    return Pool(list(scenes), pixels, labels)
