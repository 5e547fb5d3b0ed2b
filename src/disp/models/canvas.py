"""What the sampler "canvas" asks of a model: families without a mask token denoise a canvas of random tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from disp.models.interface import Prefix


@dataclass(frozen=True)
class CanvasSampling:
    """The sampler's published constants; a checkpoint's ``generation_config.json`` may hold others.

    Attributes:
        t_min: temperature that the last step comes close to.
        t_max: temperature of the first step.
        entropy_bound: nats; tokens are kept, least entropy first, while the sum of the entropies of those before is
            at most this.
        stability_threshold: passes whose likeliest tokens must be the same as now for an early end.
        confidence_threshold: mean entropy in nats below which denoising may end early.
    """

    t_min: float = 0.4
    t_max: float = 0.8
    entropy_bound: float = 0.1
    stability_threshold: int = 1
    confidence_threshold: float = 0.005


class EncodedPrompt(Protocol):
    """What a model has computed of the prompts of B rows, and of their canvases finished before."""

    @property
    def attention_mask(self) -> Tensor:
        """Bool ``[B, P]``, false at padding."""

    def select(self, rows: Tensor) -> EncodedPrompt:
        """The given rows; ``rows`` int64 ``[B']``."""


class CanvasModel(Protocol):
    """An `MDLM` with a canvas."""

    mask_token_id: int
    end_token_ids: tuple[int, ...]
    banned_token_ids: tuple[int, ...]
    sampling: CanvasSampling

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""

    @property
    def vocab_size(self) -> int:
        """V."""

    @property
    def canvas_length(self) -> int:
        """Slots of the largest canvas."""

    def cache_prefix(self, prefix: Prefix) -> EncodedPrompt:
        """Read the prompts."""

    def append(self, encoded: EncodedPrompt, ids: Tensor) -> EncodedPrompt:
        """The prompts continued by finished canvases, int64 ``[B, L]``."""

    def denoise_canvas(self, encoded: EncodedPrompt, canvas: Tensor, self_conditioning: Tensor | None = None) -> Tensor:
        """Ids int64 ``[B, L]`` to logits ``[B, L, V]``; ``self_conditioning`` is what the last pass returned."""
