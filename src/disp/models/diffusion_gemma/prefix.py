"""DiffusionGemma's prompts: as the embedded prefix, and as what its encoder makes of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from disp.models.interface import Prefix


@dataclass(frozen=True)
class GemmaPrefix(Prefix):
    """A prefix that brings along what stands in for its masked visual tokens: ``extras["substitutes"]`` ``[B, P, d]``.

    They are taken from the unmasked picture when it is embedded, so masking in several rounds gives what masking at
    once does.
    """

    def substitutes(self, mask_embedding: Tensor) -> Tensor:
        """What takes the place of each visual token, ``[B, P, d]``; ``mask_embedding`` is not needed."""
        return self.extras["substitutes"].to(self.embeds.dtype)

    def with_masked(self, masked: Tensor, mask_embedding: Tensor) -> GemmaPrefix:
        """The prefix with the visual tokens of ``masked`` (bool ``[B, P]``) replaced by their substitutes.

        Raises:
            ValueError: ``masked`` names a position that holds no visual token.
        """
        if (masked & ~self.visual_mask).any():
            raise ValueError("only visual tokens can be masked; `masked` is true at another position")
        return replace(self, embeds=torch.where(masked[..., None], self.substitutes(mask_embedding), self.embeds))


@dataclass(frozen=True)
class EncodedPrefix:
    """What the decoder reads of a prompt, and of canvases finished before: the encoder's keys and values.

    Attributes:
        past_key_values: the encoder's cache. The decoder reads it and never writes.
        attention_mask: bool ``[B, P]``, false at padding.
    """

    past_key_values: Cache
    attention_mask: Tensor

    def select(self, rows: Tensor) -> EncodedPrefix:
        """The given rows, in a cache of their own; ``rows`` int64 ``[B']`` may repeat a row."""
        cache: Any = copy.copy(self.past_key_values)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        return EncodedPrefix(cache, self.attention_mask[rows])


def image_means(tokens: Tensor, image: Tensor) -> Tensor:
    """For each visual token the mean of its image's, ``[N, d]``; ``image`` int64 ``[N]`` numbers the images."""
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    sums = wide.new_zeros(int(image.max()) + 1, wide.shape[-1]).index_add_(0, image, wide)
    means = sums / image.bincount(minlength=len(sums)).clamp(min=1)[:, None]
    return means[image].to(tokens.dtype)
