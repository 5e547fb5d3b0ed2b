"""A bidirectional transformer with RMSNorm, rotary positions and SwiGLU, under the parameter names of Llama."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from disp.errors import DispError, unknown_name
from disp.models.parts.config import LanguageConfig

# Attention scores that are held in memory at most; see `_products_are_faster`.
MOST_SCORES = 1 << 25


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension, computed in float32 or wider."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.float32, torch.float64):
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self.weight * F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype)


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for rotary positions in the half-split layout.

    Args:
        positions: int64 ``[B, T]``.
        head_dim: width of one head.
        theta: base of the wavelengths.

    Returns:
        Two float32 tensors ``[B, 1, T, head_dim]``.
    """
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    # One over a power, not a negative power: the rounding that Llama's models were trained with. At position 2000 the
    # other way is off by 1e-4 of an angle.
    angles = positions[..., None].float() * (1.0 / theta ** (steps / head_dim))
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions to ``[B, H, T, head_dim]``."""
    cos, sin = table
    half = x.shape[-1] // 2
    # The sign goes into the table, which has no heads.
    sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
    wide = x.to(torch.promote_types(x.dtype, cos.dtype))
    return torch.addcmul(wide * cos, wide.roll(half, -1), sin.to(wide.dtype)).to(x.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, implementation: str = "sdpa") -> Tensor:
    """Attention with the kernel that `use_attention` names.

    Args:
        query: ``[B, H, R, head_dim]``.
        key: ``[B, G, T, head_dim]``, G a divisor of H.
        value: ``[B, G, T, head_dim]``.
        mask: bool, broadcast to ``[B, H, R, T]``, true where a query sees a key; None for everywhere.
        implementation: "sdpa", "flash" or "eager".

    Returns:
        ``[B, H, R, head_dim]``.
    """
    grouped = query.shape[1] != key.shape[1]
    if grouped and (mask is not None or implementation == "eager"):
        # The kernels that take a mask do not take grouped heads, and what stands in for them is far slower.
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        grouped = False
    if implementation == "eager":
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    if implementation == "sdpa" and _products_are_faster(query, key):
        return _attend_by_products(query, key, value, mask)
    if implementation == "flash" and mask is None:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(query, key, value, enable_gqa=grouped)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)


def _attend_by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """`attend` with the scores in memory; as many heads of keys as of queries."""
    batch, heads, _, width = query.shape
    bias = query.new_zeros(1, 1, 1, key.shape[2])
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    bias = bias.expand(batch, heads, bias.shape[2], key.shape[2]).flatten(0, 1)
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=width**-0.5)  # [B·H, R, T]
    # Where no backward pass wants them, the scores need not be kept.
    weights = scores.softmax(-1) if scores.requires_grad else torch.softmax(scores, -1, out=scores)
    return (weights @ value).unflatten(0, (batch, heads))


def _products_are_faster(query: Tensor, key: Tensor) -> bool:
    """Whether plain products beat torch's kernel, as in bfloat16 on a CPU.

    Of some 200 tokens its forward pass takes one and a half times as long, its backward pass four times.
    """
    scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and query.shape[1] == key.shape[1]
        and scores <= MOST_SCORES
    )


def use_attention(model: nn.Module, implementation: str) -> None:
    """Choose the attention kernel of a model.

    Args:
        model: a model built of these blocks, or with parts of `transformers` that know the same names.
        implementation: "sdpa" lets torch choose; "flash" (or "flash_attention_2") is torch's flash kernel, an error
            where it cannot run, except for batches with padding, which no flash kernel of torch takes: they go the
            way of "sdpa"; "eager" is plain matrix products.

    Raises:
        DispError: the name is unknown, or a part of the model does not know it.
    """
    names = {"sdpa": "sdpa", "flash": "flash", "flash_attention_2": "flash", "eager": "eager"}
    if implementation not in names:
        raise unknown_name("attn_implementation", implementation, names)
    for module in model.modules():
        if isinstance(module, Attention):
            module.implementation = names[implementation]
        elif module is not model and isinstance(module, PreTrainedModel):
            library_name = "flash_attention_2" if names[implementation] == "flash" else implementation
            try:
                module.set_attn_implementation(library_name)
            except (ImportError, ValueError) as error:
                raise DispError(f"attn_implementation {implementation!r}: {error}") from None


class Attention(nn.Module):
    """Bidirectional attention with grouped key and value heads; queries may be fewer than keys."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, qkv_bias: bool):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.implementation = "sdpa"  # see `use_attention`
        self.q_proj = nn.Linear(width, heads * head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], mask: Tensor | None, rows: int) -> Tensor:
        """Attend from the last ``rows`` positions of ``x`` ``[B, T, d]`` to all of them; returns ``[B, rows, d]``."""
        batch, length, _ = x.shape
        query = self.q_proj(x[:, length - rows :]).view(batch, rows, self.heads, self.head_dim).transpose(1, 2)
        key = self.k_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        value = self.v_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        query = rotate(query, (table[0][:, :, length - rows :], table[1][:, :, length - rows :]))
        key = rotate(key, table)
        out = attend(query, key, value, mask, self.implementation)  # [B, H, rows, head_dim]
        return self.o_proj(out.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """The gated feed-forward layer."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(GradientCheckpointingLayer):
    """One pre-norm layer; its activations can be recomputed in the backward pass."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(
            width, config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.attention_bias
        )
        self.mlp = SwiGLU(width, config.intermediate_size)
        self.input_layernorm = RMSNorm(width, eps)
        self.post_attention_layernorm = RMSNorm(width, eps)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], mask: Tensor | None, rows: int) -> Tensor:
        """``[B, T, d]`` to ``[B, rows, d]``: the last ``rows`` positions, which have seen all others."""
        attended = self.self_attn(self.input_layernorm(x), table, mask, rows)
        x = x[:, x.shape[1] - rows :] + attended
        return x + self.mlp(self.post_attention_layernorm(x))


def attention_inputs(
    attention_mask: Tensor, head_dim: int, theta: float
) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """Rotary table and attention mask of a padded batch.

    Positions count the tokens that are there, so padding on the left changes nothing for the others.

    Args:
        attention_mask: bool ``[B, T]``, false at padding.
        head_dim: width of one head.
        theta: base of the rotary wavelengths.

    Returns:
        The table of `rotary_table`, and the mask as bool ``[B, 1, 1, T]``, or None where nothing is padded.
    """
    if attention_mask.all():
        positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)[None]
        return rotary_table(positions, head_dim, theta), None
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    return rotary_table(positions, head_dim, theta), attention_mask[:, None, None, :]
