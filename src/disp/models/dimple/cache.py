"""Keys and values of a Dimple prompt, kept from one denoising step to the next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from disp.models.parts.prefix_cache import block_after
from disp.models.parts.transformer import Block


@dataclass
class PromptCache:
    """Keys and values of every prompt token but the last, from a pass with a response of nothing but masks.

    Attributes:
        layers: key and value ``[B, KV, P - 1, head_dim]`` of each layer; empty until the first pass.
        length: L of that pass.
    """

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    length: int = 0

    def select(self, rows: Tensor) -> PromptCache:
        """The given rows; ``rows`` int64 ``[B']``."""
        return PromptCache([(key[rows], value[rows]) for key, value in self.layers], self.length)

    def fill(
        self, blocks: Iterable[Block], x: Tensor, table: tuple[Tensor, Tensor], mask: Tensor | None, length: int
    ) -> Tensor:
        """Run prompt and masks ``[B, P + L, d]`` through the layers and keep the prompt; their output."""
        layers = []
        for block in blocks:
            x, key, value = block_after(block, x, table, mask, None)
            layers.append((key[:, :, : -length - 1], value[:, :, : -length - 1]))
        self.layers, self.length = layers, length
        return x

    def run(self, blocks: Iterable[Block], x: Tensor, table: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Run the last prompt token and the response ``[B, L + 1, d]`` through the layers; their output."""
        for block, past in zip(blocks, self.layers, strict=True):
            x, _, _ = block_after(block, x, table, mask, past)
        return x
