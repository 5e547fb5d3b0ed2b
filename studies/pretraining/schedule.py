"""Learning-rate schedule and log of pre-training."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from disp.files import write_text


def cosine_schedule(
    optimiser: torch.optim.Optimizer, steps: int, warmup: int, start: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up and cosine decay to 2% of the peak, from step ``start`` of ``steps`` on."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warmup, 0.02 + 0.49 * (1 + math.cos(math.pi * min((step + start) / steps, 1.0)))),
    )


def optimiser_with_schedule(
    parameters: Iterable[nn.Parameter], lr: float, steps: int, warmup: int = 100
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with `cosine_schedule`."""
    optimiser = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    return optimiser, cosine_schedule(optimiser, steps, warmup)


class Log:
    """Prints lines and keeps them for ``pretrain.log``."""

    def __init__(self, folder: Path):
        self.folder, self.start = folder, time.monotonic()
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(f"[{(time.monotonic() - self.start) / 60:6.1f} min] {line}")
        print(self.lines[-1], flush=True)
        write_text(self.folder / "pretrain.log", "\n".join(self.lines) + "\n")
