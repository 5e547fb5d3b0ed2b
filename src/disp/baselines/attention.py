"""What a model attends to at the first denoising step, without keeping full attention maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from disp.errors import DispError
from disp.models.interface import MDLM, Prefix
from disp.models.parts.transformer import Attention, rotate


@torch.no_grad()
def attention_of(
    model: MDLM, prefix: Prefix, reduce: Callable[[Tensor, int], Tensor], prompt: Sequence[int] | None = None
) -> Tensor:
    """A reduction of each layer's attention weights, while every response slot is masked.

    The weights of one row of the batch in one layer are in memory at a time.

    Args:
        model: the MDLM.
        prefix: B rows.
        reduce: the weights of the Q positions that look, float32 ``[H, Q, P + L]``, and the row's index, to a tensor of
            the same shape for all rows and layers. The last L of the Q positions are the response slots.
        prompt: of each row how many of the prompt's last positions look besides the response slots; none if None.

    Returns:
        float32 ``[B, layers, ...]`` on the CPU.

    Raises:
        DispError: the family's attention is not that of `disp.models.parts.transformer`.
    """
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    if not layers:
        raise DispError(
            f"{type(model).__name__} does not show its attention weights; choose a defence that needs none, or a "
            "family that is built on disp.models.parts.transformer"
        )
    length = model.slots_of_pass()
    looking = [length + more for more in prompt or [0] * len(prefix)]
    found: list[Tensor] = []

    def look(layer: Attention, arguments: tuple[Any, ...]) -> None:
        x, table, mask, _ = arguments
        found.append(
            torch.stack(
                [reduce(_weights(layer, x, table, mask, row, many), row).cpu() for row, many in enumerate(looking)]
            )
        )

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        model.denoise(prefix, torch.full((len(prefix), length), model.mask_token_id, device=prefix.embeds.device))
    finally:
        for handle in handles:
            handle.remove()
    if len(found) != len(layers):
        raise DispError(
            f"{type(model).__name__} runs {len(found)} of its {len(layers)} attention layers in a pass; choose a "
            "defence that needs no attention weights"
        )
    return torch.stack(found, dim=1)


def _weights(
    layer: Attention, x: Tensor, table: tuple[Tensor, Tensor], mask: Tensor | None, row: int, length: int
) -> Tensor:
    """Weights of the last ``length`` positions of one row, float32 ``[H, length, T]``, as `Attention.forward` has."""
    each = x[row : row + 1]
    total = each.shape[1]
    cos, sin = (part[row if len(part) > 1 else 0][None] for part in table)
    query = layer.q_proj(each[:, total - length :]).view(1, length, layer.heads, layer.head_dim).transpose(1, 2)
    key = layer.k_proj(each).view(1, total, layer.kv_heads, layer.head_dim).transpose(1, 2)
    query = rotate(query, (cos[:, :, total - length :], sin[:, :, total - length :]))[0]
    key = rotate(key, (cos, sin))[0].repeat_interleave(layer.heads // layer.kv_heads, dim=0)
    scores = (query @ key.mT).float() * layer.head_dim**-0.5
    if mask is not None:
        own = mask[row if len(mask) > 1 else 0]  # [1 or H, 1 or T, T]
        scores = scores.masked_fill(~own[:, -length:], -torch.inf)
    return scores.softmax(-1)
