"""Stage one of pre-training: the vision tower learns what each visual token shows."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disp.data.scenes import COLOURS
from disp.draws import generator
from disp.experiments.precision import half_precision
from disp.experiments.pretraining.scenes import GROUND, PRETRAINING_SEED, STICKERS, Pool
from disp.experiments.pretraining.schedule import Log, optimiser_with_schedule
from disp.models.llada_v import LladaV
from disp.models.vision import normalise_pixels


def train_tower(model: LladaV, plain: Pool, stickered: Pool, steps: int, batch: int, log: Log) -> None:
    """Stage one: name the drawing under each visual token, and tell the ground's colour and the place from every token.

    Naming alone teaches the tower to forget where a token is, and then no language model can tell left from right. A
    quarter of each batch is shown a second time with stickers, which are to be named where they are and to change
    nothing elsewhere: a tower that has never seen anything but scenes is upset all over by one foreign square.

    Args:
        model: the model.
        plain: the pre-training scenes.
        stickered: the same scenes with stickers on most of them.
        steps: optimiser steps.
        batch: pictures a step.
        log: where progress goes.
    """
    width = model.config.vision["hidden_size"]
    heads = nn.ModuleDict(
        {
            "norm": nn.LayerNorm(width),
            "class": nn.Linear(width, GROUND + 1 + len(STICKERS)),
            "colour": nn.Linear(width, len(COLOURS)),
            "place": nn.Linear(width, 2),
        }
    )
    tower = model.model.vision_tower
    for parameter in tower.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.04)  # the transformer's scale is too large for a tower with its own stem
    optimiser, schedule = optimiser_with_schedule([*tower.parameters(), *heads.parameters()], 1.5e-3, steps)
    class_weights = torch.ones(GROUND + 1 + len(STICKERS))
    class_weights[GROUND] = 0.2  # three tokens in four show the ground
    steps_across = torch.linspace(-1, 1, tower.grid)
    places = torch.cartesian_prod(steps_across, steps_across)  # [N, 2]: row, column
    draw = generator(PRETRAINING_SEED, "tower batches")
    twins = batch // 4
    start = time.monotonic()
    right = total = 0
    for step in range(steps):
        rows = torch.from_numpy(draw.integers(len(plain.scenes), size=batch - twins))
        pixels = torch.cat((plain.pixels[rows], stickered.pixels[rows[:twins]]))
        labels = torch.cat((plain.labels[rows], stickered.labels[rows[:twins]]))
        colours = plain.colours[torch.cat((rows, rows[:twins]))]
        with half_precision():
            features = heads["norm"](tower(normalise_pixels(pixels)))
            classes = heads["class"](features)
            class_loss = F.cross_entropy(classes.flatten(0, 1), labels.flatten(), class_weights)
            colour = heads["colour"](features)
            colour_loss = F.cross_entropy(colour.flatten(0, 1), colours.repeat_interleave(labels.shape[1]))
            place_loss = F.mse_loss(heads["place"](features).float(), places.expand(batch, -1, -1))
            elsewhere = labels[-twins:] == labels[:twins]
            change = (features[-twins:] - features[:twins]).float().square().mean(-1)
            change_loss = (change * elsewhere).sum() / elsewhere.sum()
        optimiser.zero_grad()
        (class_loss + 0.2 * colour_loss + 2 * place_loss + 0.5 * change_loss).backward()
        nn.utils.clip_grad_norm_([*tower.parameters(), *heads.parameters()], 1.0)
        optimiser.step()
        schedule.step()
        shown = (labels >= 0) & (labels != GROUND)
        right += int((classes.argmax(-1) == labels)[shown].sum())
        total += int(shown.sum())
        if (step + 1) % 50 == 0:
            log(
                f"tower {step + 1}/{steps} loss {class_loss.item():.3f} colour {colour_loss.item():.3f} place "
                f"{place_loss.item():.4f} change by stickers {change_loss.item():.4f} object and sticker tokens right "
                f"{right / total:.3f} ({time.monotonic() - start:.0f} s)"
            )
            right = total = 0


@torch.no_grad()
def extract_features(model: LladaV, pixels: Tensor) -> Tensor:
    """The frozen tower's features of all pictures, float16 ``[count, N, d_vision]``."""
    return torch.cat([model.model.vision_tower(normalise_pixels(chunk)).half() for chunk in pixels.split(128)])
