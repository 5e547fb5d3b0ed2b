"""A layer of the transformer that also sees keys and values from before."""

from __future__ import annotations

import torch
from torch import Tensor

from disp.models.parts.transformer import Block, attend, rotate


def block_after(
    block: Block,
    x: Tensor,
    table: tuple[Tensor, Tensor],
    mask: Tensor | None,
    past: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer on ``x`` ``[B, T, d]``, which sees itself and, before that, cached keys and values.

    Args:
        block: the layer.
        x: its input.
        table: of the rotary positions of ``x``, see `disp.models.parts.transformer.rotary_table`.
        mask: bool, broadcastable to ``[B, H, T, T' + T]``, true where a query may see a key; None for everywhere.
        past: keys and values ``[B, kv_heads, T', head_dim]``; None for nothing.

    Returns:
        The layer's output ``[B, T, d]``, and the keys (rotated) and values ``[B, kv_heads, T, head_dim]`` of ``x``.
    """
    attention = block.self_attn
    normed = block.input_layernorm(x)
    query, key, value = (
        project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    # Of a model that is spread over devices the table and the mask are where the first layer is.
    cos, sin = (each.to(key.device) for each in table)
    mask = None if mask is None else mask.to(key.device)
    query, key = rotate(query, (cos, sin)), rotate(key, (cos, sin))
    all_keys = key if past is None else torch.cat((past[0], key), dim=2)
    all_values = value if past is None else torch.cat((past[1], value), dim=2)
    attended = attend(query, all_keys, all_values, mask, attention.implementation)
    out = attention.o_proj(attended.transpose(1, 2).flatten(2))
    x = x.to(out.device) + out
    return x + block.mlp(block.post_attention_layernorm(x)), key, value
