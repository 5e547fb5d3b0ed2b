"""Denoising steps that compute no more than they need: open slots alone, and the prompt only now and then.

Two savings, which `denoise_slots` makes together. What a step reads of the last layer and of the head are the slots
that it may fill; leaving out all other rows is exact. And between two steps the keys and values of the prompt change
little: they can be kept for some steps, which then compute the response alone. That is exact only where they are not
kept (a step that computes all) or where the prompt does not see the response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from disp.models.interface import Past, Prefix
from disp.models.parts.language import LanguageModel
from disp.models.parts.transformer import Block, attend, attention_inputs, rotate

Table = tuple[Tensor, Tensor]
# Products of fewer rows take other kernels, whose sums differ in the last digit: on a CPU 1 to 3 rows did, 7 did not.
LEAST_SLOTS = 8


@dataclass(frozen=True)
class Inputs:
    """A prefix with its response as the layers take them.

    Attributes:
        x: embedded tokens, float ``[B, P + L, d]``.
        table: of their rotary positions, two tensors ``[B or 1, 1, P + L, head_dim]``.
        mask: bool ``[B, 1, 1, P + L]``, false at padding; None where there is none.
    """

    x: Tensor
    table: Table
    mask: Tensor | None


@dataclass(frozen=True)
class KeyValues(Past):
    """Keys and values of prompt and response in every layer; the response's are those of the last step.

    Attributes:
        keys: ``[B, kv_heads, P + L, head_dim]`` of each layer, rotated.
        values: the same.
        table: rotary positions of the rows that are computed again.
        mask: see `Inputs`.
        first: how many positions are kept; those from here on are computed again in every step.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    table: Table
    mask: Tensor | None
    first: int

    def select(self, rows: Tensor) -> KeyValues:
        cos, sin = (each if len(each) == 1 else each[rows] for each in self.table)
        return KeyValues(
            keys=tuple(each[rows] for each in self.keys),
            values=tuple(each[rows] for each in self.values),
            table=(cos, sin),
            mask=None if self.mask is None else self.mask[rows],
            first=self.first,
        )


def plain_inputs(language: LanguageModel, prefix: Prefix, response: Tensor) -> Inputs:
    """`Inputs` where positions count the tokens that are there and everything sees everything."""
    valid = torch.cat((prefix.attention_mask, torch.ones_like(response, dtype=torch.bool)), dim=1)
    table, mask = attention_inputs(valid, language.head_dim, language.rope_theta)
    return Inputs(torch.cat((prefix.embeds, language.embed_tokens(response)), dim=1), table, mask)


def denoise(language: LanguageModel, head: nn.Module, prefix: Prefix, response: Tensor) -> Tensor:
    """`disp.models.interface.MDLM.denoise` of a family where everything sees everything: logits ``[B, L, V]``.

    Args:
        language: the model without its head.
        head: from hidden states to logits.
        prefix: prompts and visual tokens, B rows.
        response: int64 ``[B, L]``.
    """
    hidden = language.after(prefix.embeds, prefix.attention_mask, response)
    # The head of a model spread over devices is not where the response is.
    logits: Tensor = head(hidden).to(response.device)
    return logits


def supervised_slots(clean: Tensor, end_token_ids: Sequence[int]) -> Tensor:
    """The slots of an answer with its end of turn; the padding behind them is not learnt.

    Args:
        clean: int64 ``[B, L]``, answers.
        end_token_ids: of the end of a turn, and of padding.

    Returns:
        bool ``[B, L]``.
    """
    end, padding = end_token_ids
    ended = (clean == end).cumsum(1) - (clean == end).long()  # turns that ended before each token
    return (ended == 0) | (clean != padding)


def denoise_slots(
    language: LanguageModel,
    head: nn.Module,
    prefix: Prefix,
    response: Tensor,
    slots: Tensor,
    past: Past | None,
    *,
    keep: bool,
    shift: int = 0,
    inputs: Callable[[Prefix, Tensor], Inputs] | None = None,
) -> tuple[Tensor, KeyValues | None]:
    """`disp.models.interface.MDLM.denoise_slots` of a family that is built on a `LanguageModel`.

    Args:
        language: the model without its head.
        head: from hidden states to logits.
        prefix: prompts and visual tokens, B rows.
        response: int64 ``[B, L]``.
        slots: int64 ``[B, M]``.
        past: what an earlier step of these rows returned; None computes the prompt as well.
        keep: whether the keys and values are wanted.
        shift: rows that the head's predictions are early by: row i predicts token i + ``shift``.
        inputs: from prefix and response to what the layers take; `plain_inputs` if None.
    """
    tail = response.shape[1] + shift
    if past is None:
        given = plain_inputs(language, prefix, response) if inputs is None else inputs(prefix, response)
        hidden, kept = _whole(language, given, given.x.shape[1] - tail, slots, keep)
    else:
        assert isinstance(past, KeyValues)
        last = prefix.embeds[:, prefix.embeds.shape[1] - shift :]
        x = torch.cat((last, language.embed_tokens(response)), dim=1)
        hidden, kept = _tail(language, x, past, slots), past
    return head(language.norm(hidden)).to(response.device), kept


def _whole(
    language: LanguageModel, given: Inputs, first: int, slots: Tensor, keep: bool
) -> tuple[Tensor, KeyValues | None]:
    """Hidden states ``[B, M, d]`` of all positions' layers, and their keys and values if they are kept."""
    x, length = given.x, given.x.shape[1]
    keys, values = [], []
    *layers, last = _blocks(language)
    for layer in layers:
        if keep:
            x, key, value = _layer(layer, x, given.table, given.mask)
            keys.append(key)
            values.append(value)
        else:
            x = layer(x, given.table, given.mask, length)
    hidden, key, value = _layer(last, x, given.table, given.mask, rows=first + slots)
    if not keep:
        return hidden, None
    cos, sin = given.table
    kept = KeyValues(
        keys=(*keys, key),
        values=(*values, value),
        table=(cos[:, :, first:], sin[:, :, first:]),
        mask=given.mask,
        first=first,
    )
    return hidden, kept


def _tail(language: LanguageModel, x: Tensor, past: KeyValues, slots: Tensor) -> Tensor:
    """Hidden states ``[B, M, d]`` of the last positions alone, ``x`` ``[B, L + shift, d]``, behind a kept prompt."""
    layers = _blocks(language)
    for index, layer in enumerate(layers):
        joined = past.keys[index], past.values[index]
        rows = slots if index == len(layers) - 1 else None
        x, _, _ = _layer(layer, x, past.table, past.mask, rows=rows, joined=joined, first=past.first)
    return x


def _layer(
    block: Block,
    x: Tensor,
    table: Table,
    mask: Tensor | None,
    *,
    rows: Tensor | None = None,
    joined: tuple[Tensor, Tensor] | None = None,
    first: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer.

    Args:
        block: the layer.
        x: its input ``[B, T, d]``.
        table: rotary positions of ``x``.
        mask: bool, broadcastable to ``[B, H, T, keys]``; None for everywhere.
        rows: int64 ``[B, M]``, which rows of ``x`` are wanted; None for all.
        joined: keys and values of all positions, to which those of ``x`` are written from ``first`` on.
        first: see ``joined``.

    Returns:
        The output ``[B, T or M, d]``, and keys and values of all positions.
    """
    attention = block.self_attn

    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    normed = block.input_layernorm(x)
    key, value = heads(attention.k_proj(normed)), heads(attention.v_proj(normed))
    # Of a model that is spread over devices the table is where the first layer is.
    cos, sin = (each.to(key.device) for each in table)
    key = rotate(key, (cos, sin))
    if joined is not None:
        joined[0][:, :, first:], joined[1][:, :, first:] = key, value
        key, value = joined
    if rows is not None:
        x, normed = _rows_of(x, rows), _rows_of(normed, rows)
        cos, sin = (_rows_of(each[:, 0], rows)[:, None] for each in (cos, sin))
    query = rotate(heads(attention.q_proj(normed)), (cos, sin))
    mask = None if mask is None else mask.to(key.device)
    out = attention.o_proj(attend(query, key, value, mask, attention.implementation).transpose(1, 2).flatten(2))
    x = x.to(out.device) + out
    return x + block.mlp(block.post_attention_layernorm(x)), key, value


def _blocks(language: LanguageModel) -> list[Block]:
    return cast(list[Block], list(language.layers))


def _rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """``[B or 1, T, d]`` at ``rows`` ``[B, M]``: ``[B, M, d]``."""
    rows = rows.to(x.device)
    return x.expand(len(rows), -1, -1).gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
