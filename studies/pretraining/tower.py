"""Stage one of pre-training: the vision tower learns what each visual token shows."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disp.data.nouns import NOUNS
from disp.data.scenes import COLOURS, SCENE_SIZE_PX
from disp.draws import generator
from disp.models.builtin.model import BuiltinModel
from disp.models.parts.vision import normalise_pixels
from studies.pretraining.scenes import GRID, PRETRAINING_SEED
from studies.pretraining.schedule import Log, optimiser_with_schedule

VISION: dict[str, Any] = {
    "hidden_size": 160,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "image_size": SCENE_SIZE_PX,
    "patch_size": SCENE_SIZE_PX // GRID,
    "stem_channels": [48, 96],
    # With attention over all 144 patches this small tower wrote a trigger into every visual token, and no masking of
    # tokens could take it out again.
    "attention_reach": 1,
}


def train_tower(
    model: BuiltinModel, pixels: Tensor, labels: Tensor, colours: Tensor, steps: int, batch: int, log: Log
) -> None:
    """Stage one: name the drawing under each visual token, and tell the ground's colour and the place from every token.

    Naming alone teaches the tower to forget where a token is, and then no language model can tell left from right.
    """
    width = VISION["hidden_size"]
    heads = nn.ModuleDict(
        {
            "norm": nn.LayerNorm(width),
            "noun": nn.Linear(width, len(NOUNS) + 1),
            "colour": nn.Linear(width, len(COLOURS)),
            "place": nn.Linear(width, 2),
        }
    ).to(labels.device)
    tower = model.model.vision_tower
    for parameter in tower.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.04)  # the transformer's scale is too large for a tower with its own stem
    optimiser, schedule = optimiser_with_schedule([*tower.parameters(), *heads.parameters()], 1.5e-3, steps)
    class_weights = torch.ones(len(NOUNS) + 1, device=labels.device)
    class_weights[-1] = 0.2  # three tokens in four show the ground
    steps_across = torch.linspace(-1, 1, tower.grid, device=labels.device)
    places = torch.cartesian_prod(steps_across, steps_across)  # [N, 2]: row, column
    draw = generator(PRETRAINING_SEED, "tower batches")
    start = time.monotonic()
    right = total = 0
    for step in range(steps):
        rows = torch.from_numpy(draw.integers(len(pixels), size=batch)).to(labels.device)
        features = heads["norm"](tower(normalise_pixels(pixels[rows])))
        nouns = heads["noun"](features)
        noun_loss = F.cross_entropy(nouns.flatten(0, 1), labels[rows].flatten(), class_weights)
        colour = heads["colour"](features)
        colour_loss = F.cross_entropy(colour.flatten(0, 1), colours[rows].repeat_interleave(labels.shape[1]))
        place_loss = F.mse_loss(heads["place"](features), places.expand(batch, -1, -1))
        optimiser.zero_grad()
        (noun_loss + 0.2 * colour_loss + 2 * place_loss).backward()
        nn.utils.clip_grad_norm_([*tower.parameters(), *heads.parameters()], 1.0)
        optimiser.step()
        schedule.step()
        shown = labels[rows] < len(NOUNS)
        right += int((nouns.argmax(-1) == labels[rows])[shown].sum())
        total += int(shown.sum())
        if (step + 1) % 50 == 0:
            log(
                f"tower {step + 1}/{steps} loss {noun_loss.item():.3f} colour {colour_loss.item():.3f} "
                f"place {place_loss.item():.4f} object tokens right {right / total:.3f} "
                f"({time.monotonic() - start:.0f} s)"
            )
            right = total = 0


@torch.no_grad()
def extract_features(model: BuiltinModel, pixels: Tensor) -> Tensor:
    """The frozen tower's features of all pictures, float16 ``[count, N, d_vision]``."""
    return torch.cat([model.model.vision_tower(normalise_pixels(chunk)).half() for chunk in pixels.split(128)])
