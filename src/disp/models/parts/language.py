"""The language model without its head: LLaDA's, Dream's and the built-in one's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from disp.models.parts.config import LanguageConfig
from disp.models.parts.transformer import Block, RMSNorm, attention_inputs


class LanguageModel(nn.Module):
    """Embedding, layers and final norm: what stands under the ``model.`` prefix of a checkpoint."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.head_dim, self.rope_theta = config.head_dim, config.rope_theta
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def after(self, embeds: Tensor, attention_mask: Tensor, ids: Tensor) -> Tensor:
        """The hidden states ``[B, L, d]`` of a response that stands behind its prefix; everything sees everything.

        Args:
            embeds: float ``[B, P, d]``, the prefix.
            attention_mask: bool ``[B, P]``, false at padding.
            ids: int64 ``[B, L]``, the response.
        """
        there = torch.ones_like(ids, dtype=torch.bool)
        return self.hidden(
            torch.cat((embeds, self.embed_tokens(ids)), dim=1),
            torch.cat((attention_mask, there), dim=1),
            rows=ids.shape[1],
        )

    def hidden(self, x: Tensor, valid: Tensor, *, rows: int, seen: Tensor | None = None) -> Tensor:
        """Embedded tokens ``[B, T, d]`` to the hidden states ``[B, rows, d]`` of the last positions.

        Args:
            x: embedded tokens.
            valid: bool ``[B, T]``, false at padding.
            rows: how many of the last positions are wanted.
            seen: bool ``[B, 1, T, T]``, which query sees which key, besides padding; None for all.
        """
        table, mask = attention_inputs(valid, self.head_dim, self.rope_theta)
        if seen is not None:
            mask = seen if mask is None else mask & seen
        return self.run(x, table, mask, rows=rows)

    def run(self, x: Tensor, table: tuple[Tensor, Tensor], mask: Tensor | None, *, rows: int) -> Tensor:
        """`hidden` with any rotary positions.

        Args:
            x: embedded tokens.
            table: of their positions, see `disp.models.parts.transformer.rotary_table`.
            mask: bool ``[B, 1, T, T]``, or ``[B, 1, 1, T]`` for the same keys at all queries; None for everywhere.
            rows: how many of the last positions are wanted.
        """
        length = x.shape[1]
        for layer in self.layers[:-1]:
            x = layer(x, table, mask, length)
        if mask is not None and mask.shape[2] > 1:
            mask = mask[:, :, length - rows :]
        # Only these rows of the last layer are ever read; leaving out the others is exact.
        return self.norm(self.layers[-1](x, table, mask, rows))
