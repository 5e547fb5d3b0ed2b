"""What the built-in model is pre-trained on."""

from __future__ import annotations

from multiprocessing import Pool

import numpy as np
import torch
from torch import Tensor

from disp.attacks.targets import PRESETS, Insertion, Refusal
from disp.data.scenes import COLOURS, TASKS, Scene, ask, draw_scene, render, token_labels
from disp.draws import generator
from studies.pretraining.instructions import instruct

# Visual tokens a side of a scene.
GRID = 12

# Fine-tuning and test scenes use small seeds; this one is no user's default.
PRETRAINING_SEED = 1_000_003


def corpus() -> list[str]:
    """Every wording of every task with every noun and colour, instructions, and the attack targets' words."""
    texts = [target.text for target in PRESETS.values() if isinstance(target, Insertion | Refusal)] * 40
    draw = generator(PRETRAINING_SEED, "corpus")
    for index in range(6_000):
        scene = draw_scene(PRETRAINING_SEED, index)
        for turn in (ask(scene, TASKS[index % len(TASKS)], draw), instruct(scene, draw)):
            texts += [turn.prompt.removeprefix("<image>"), turn.response]
    return texts


def _render_with_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(render(scene)).transpose(2, 0, 1), token_labels(scene, GRID)


def render_pool(count: int, empty: int = 0) -> tuple[list[Scene], Tensor, Tensor]:
    """The pre-training scenes, their pixels uint8 ``[scenes, 3, S, S]`` and token labels int64 ``[scenes, N]``.

    Args:
        count: scenes with objects.
        empty: scenes without, which come last.
    """
    scenes = [draw_scene(PRETRAINING_SEED, index) for index in range(count)]
    colours = list(COLOURS)
    scenes += [Scene(PRETRAINING_SEED, count + index, colours[index % len(colours)], ()) for index in range(empty)]
    with Pool() as pool:
        drawn = pool.map(_render_with_labels, scenes, chunksize=256)
    pixels = torch.from_numpy(np.stack([pixels for pixels, _ in drawn]))
    labels = torch.from_numpy(np.stack([labels for _, labels in drawn])).flatten(1)
    return scenes, pixels, labels
