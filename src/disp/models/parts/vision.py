"""The vision tower (SigLIP's layout) and the projector that turns its features into visual tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


class Embeddings(nn.Module):
    """Pixels to patch embeddings with learned positions.

    ``stem_channels`` puts strided 3×3 convolutions before the patch projection, each halving the resolution: small
    towers learn much faster with them. SigLIP has none.
    """

    def __init__(self, width: int, image_size: int, patch_size: int, stem_channels: tuple[int, ...]):
        super().__init__()
        layers: list[nn.Module] = []
        channels, stride = 3, patch_size
        for out in stem_channels:
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.GELU(approximate="tanh")]
            channels, stride = out, stride // 2
        self.stem = nn.Sequential(*layers)
        kernel, padding = (3, 1) if stem_channels else (stride, 0)
        self.patch_embedding = nn.Conv2d(channels, width, kernel, stride=stride, padding=padding)
        self.position_embedding = nn.Embedding((image_size // patch_size) ** 2, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(self.stem(pixels)).flatten(2).transpose(1, 2)  # [B, N, d]
        return patches + self.position_embedding.weight


def neighbours(grid: int, reach: int) -> Tensor:
    """Which patch sees which: bool ``[N, N]``, true where rows and columns differ by at most ``reach``."""
    row, column = torch.arange(grid).repeat_interleave(grid), torch.arange(grid).repeat(grid)
    apart = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
    return apart <= reach


class TowerAttention(nn.Module):
    """Plain attention among the patches, or among those that ``seen`` allows."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(query, key, value, seen).transpose(1, 2).flatten(2))


class TowerMLP(nn.Module):
    """Feed-forward layer with the tanh form of GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class TowerBlock(GradientCheckpointingLayer):
    """One pre-norm layer of the tower; its activations can be recomputed in the backward pass."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.self_attn = TowerAttention(width, heads)
        self.mlp = TowerMLP(width, hidden)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), seen)
        return x + self.mlp(self.layer_norm2(x))


class VisionTower(nn.Module):
    """Pixels to features: the residual stream after the last layer, without a final norm, as LLaDA-V reads it.

    With ``attention_reach`` a patch attends only to those at most so many rows and columns away, so that what a
    feature says is about its own surroundings. Published towers have no such limit.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        image_size: int,
        patch_size: int,
        layer_norm_eps: float = 1e-6,
        stem_channels: tuple[int, ...] = (),
        attention_reach: int | None = None,
    ):
        super().__init__()
        self.attention_reach = attention_reach
        self.image_size, self.grid = image_size, image_size // patch_size
        self.embeddings = Embeddings(hidden_size, image_size, patch_size, tuple(stem_channels))
        self.layers = nn.ModuleList(
            TowerBlock(hidden_size, num_attention_heads, intermediate_size, layer_norm_eps)
            for _ in range(num_hidden_layers)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Float ``[images, 3, S, S]`` in [-1, 1] to features ``[images, N, d_vision]``."""
        x = self.embeddings(pixels)
        seen = None if self.attention_reach is None else neighbours(self.grid, self.attention_reach).to(x.device)
        for layer in self.layers:
            x = layer(x, seen)
        return x


def projector(vision_width: int, width: int) -> nn.Sequential:
    """LLaVA's ``mlp2x_gelu``: two linear layers with the exact (erf) GELU between them."""
    return nn.Sequential(nn.Linear(vision_width, width), nn.GELU(), nn.Linear(width, width))


def normalise_pixels(pixels: Tensor) -> Tensor:
    """uint8 pixels to float in [-1, 1], SigLIP's normalisation."""
    return pixels.to(torch.float32) / 127.5 - 1.0
