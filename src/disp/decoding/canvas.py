"""Decoding without a mask token: denoise a canvas of random tokens, keep the sure ones, renew the others.

DiffusionGemma's sampler, with the entropy bound of Ben-Hamu et al., "Accelerated Sampling from Masked Diffusion Models
via Entropy Bounded Unmasking", arXiv 2505.24857.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor

from disp.decoding.config import DecodeConfig, Decoded
from disp.draws import generator
from disp.errors import DispError
from disp.models.canvas import CanvasModel, EncodedPrompt
from disp.models.interface import MDLM, Prefix


@dataclass(frozen=True)
class CanvasConfig(DecodeConfig):
    """Options of the sampler "canvas"; ``steps`` are those of each canvas, at most.

    Temperature and the early end follow `disp.models.canvas.CanvasSampling`, which is the model's.

    Attributes:
        block_length: slots of a canvas; None for the model's own, or ``gen_length`` if that is less.
    """

    sampler: str = field(default="canvas", init=False)
    block_length: int | None = None

    @property
    def keeps_prefix(self) -> bool:
        return True


def decode_canvas(
    model: MDLM, prefix: Prefix, config: CanvasConfig, *, keys: Sequence[str] | None = None, seed: int = 0
) -> Decoded:
    """Denoise a batch of responses, canvas after canvas.

    A finished canvas joins the prompt of the next one. Drawing is part of the method; it is keyed by seed, row and
    canvas, and not by the batch or the device's generator. An answer depends on its batch only where the last digits of
    a prediction do, which the draws can turn into another token.

    Args:
        model: a `disp.models.canvas.CanvasModel`.
        prefix: prompts and visual tokens, B rows.
        config: the sampler's options.
        keys: one key a row; needed.
        seed: the run's seed.

    Returns:
        int64 ``[B, L]``, padding behind a row's first end token.

    Raises:
        DispError: the model's canvas is smaller than a block.
    """
    if keys is None:
        raise ValueError("the sampler 'canvas' draws at random and needs `keys`, one a row")
    canvases = cast(CanvasModel, model)
    length = _canvas_length(canvases, config)
    padding, ends = canvases.end_token_ids[-1], torch.tensor(canvases.end_token_ids, device=prefix.embeds.device)
    response = torch.full((len(prefix), config.gen_length), padding, device=prefix.embeds.device)
    rows = torch.arange(len(prefix), device=response.device)
    encoded = canvases.cache_prefix(prefix)
    for first in range(0, config.gen_length, length):
        # 1. A canvas for every row whose answer goes on. The last one may reach beyond the response.
        draws = [generator(seed, "canvas", keys[row], first) for row in rows.tolist()]
        canvas = _denoise(canvases, encoded, length, config.steps, draws)
        # 2. Nothing follows an end token.
        ended = torch.isin(canvas, ends).cumsum(-1)
        is_first_end = torch.isin(canvas, ends) & (ended == 1)
        canvas = torch.where((ended == 0) | is_first_end, canvas, padding)
        response[rows, first : first + length] = canvas[:, : config.gen_length - first]
        # 3. The others read it as part of the prompt.
        going_on = (ended[:, -1] == 0).nonzero()[:, 0]
        if not len(going_on) or first + length >= config.gen_length:
            break
        rows = rows[going_on]
        encoded = canvases.append(encoded.select(going_on), canvas[going_on])
    return Decoded.whole(response)


def _canvas_length(model: CanvasModel, config: CanvasConfig) -> int:
    canvas = model.canvas_length
    if config.block_length is not None and not 1 <= config.block_length <= canvas:
        raise DispError(f"block_length must be from 1 to the model's canvas of {canvas}, got {config.block_length}")
    return config.block_length or min(canvas, config.gen_length)


def _denoise(
    model: CanvasModel, encoded: EncodedPrompt, length: int, steps: int, draws: list[np.random.Generator]
) -> Tensor:
    """One canvas, int64 ``[B, length]``: the likeliest tokens of each row's last pass."""
    sampling, vocab, device = model.sampling, model.vocab_size, encoded.attention_mask.device
    banned = sorted({*model.banned_token_ids, model.mask_token_id})

    def random_ids() -> Tensor:
        return torch.from_numpy(np.stack([draw.integers(0, vocab, length) for draw in draws])).to(device)

    canvas = random_ids()
    best = torch.full_like(canvas, -1)
    stable = torch.zeros(len(canvas), dtype=torch.int64, device=device)
    logits: Tensor | None = None
    rows = torch.arange(len(canvas), device=device)  # those that are not finished
    result = canvas.clone()
    for left in range(steps, 0, -1):
        # 1. Predict, with the last prediction as a condition.
        logits = model.denoise_canvas(encoded, canvas, None if logits is None else logits.to(model.dtype))
        logits[..., banned] = -torch.inf
        # In float32, as published: the last digit of the logits is the start of another answer after enough steps.
        share = torch.tensor(left, device=device) / steps
        logits = logits / (sampling.t_min + (sampling.t_max - sampling.t_min) * share)
        probabilities = logits.softmax(-1)
        entropies = torch.special.entr(probabilities).sum(-1)  # [A, L]
        likeliest = logits.argmax(-1)
        # 2. Draw; keep the surest draws, together no more dependent than the bound; renew the rest.
        uniforms = torch.from_numpy(np.stack([draw.random(length) for draw in draws])).to(device)
        accepted = accept(entropies, sampling.entropy_bound)
        canvas = torch.where(accepted, draw_tokens(probabilities, uniforms), random_ids())
        # 3. Rows whose likeliest tokens are sure and stay the same are finished.
        stable = torch.where((likeliest == best).all(-1), stable + 1, 0)
        best = likeliest
        result[rows] = best
        finished = (stable >= sampling.stability_threshold) & (entropies.mean(-1) < sampling.confidence_threshold)
        if finished.all():
            break
        if finished.any():
            keep = (~finished).nonzero()[:, 0]
            encoded, rows, draws = encoded.select(keep), rows[keep], [draws[index] for index in keep.tolist()]
            canvas, best, stable, logits = canvas[keep], best[keep], stable[keep], logits[keep]
    return result


def accept(entropies: Tensor, bound: float) -> Tensor:
    """Which slots are kept: in order of entropy, all whose predecessors' entropies sum up to at most ``bound``.

    Args:
        entropies: float ``[B, L]`` in nats.
        bound: in nats.

    Returns:
        bool ``[B, L]``; at least one slot a row.
    """
    ordered, order = entropies.sort(dim=-1, stable=True)
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, ordered.cumsum(-1) - ordered <= bound)


def draw_tokens(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """A token of each slot by inversion: the first one at which the cumulative probability exceeds the uniform number.

    Args:
        probabilities: float ``[B, L, V]``.
        uniforms: float64 ``[B, L]`` in [0, 1).

    Returns:
        int64 ``[B, L]``, never a token of probability zero.
    """
    tokens = torch.empty_like(uniforms, dtype=torch.int64)
    for row, (each, uniform) in enumerate(zip(probabilities, uniforms, strict=True)):  # a row's float64 is large
        cumulative = each.double().cumsum(-1)
        # The last sum is not exactly one: scaled by it, no draw falls behind the last token.
        target = uniform[:, None].double() * cumulative[:, -1:]
        tokens[row] = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return tokens
