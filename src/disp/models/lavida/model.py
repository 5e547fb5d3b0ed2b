"""LaViDa (arXiv 2505.16839) on LLaDA and on Dream.

The arrangement of LLaDA-V with its tiles, and these differences: each tile's tokens are pooled after the projector;
the training loss runs on two complementary masks without the 1/t weight; decoding may freeze the prompt's keys and
values. The Dream variant has grouped key heads and predicts each token one position earlier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from disp.models.interface import Past, Prefix
from disp.models.lavida.config import LavidaConfig
from disp.models.lavida.key_names import official_name
from disp.models.lavida.masks import complementary_pair
from disp.models.lavida.published import POOLING
from disp.models.llada_v.model import LladaV
from disp.models.parts.anyres import Merged
from disp.models.parts.llava import IGNORED
from disp.models.parts.prefix_cache import block_after
from disp.models.parts.slots import denoise_slots
from disp.models.parts.transformer import attention_inputs


class Lavida(LladaV):
    """A published LaViDa; see `disp.models.interface.MDLM` for what each method promises."""

    config_class = LavidaConfig
    config: LavidaConfig

    def __init__(self, config: LavidaConfig):
        super().__init__(config)
        # No token is banned, and the end of text is an end like that of the turn: both were trained.
        self.banned_token_ids = ()
        self.generation_defaults = dict(config.generation)
        # Rows by which logits are shifted: Dream's row i predicts token i + 1.
        self.shift = int(config.variant == "dream")

    # --- tensors to logits ----------------------------------------------------------------------------------------

    def _merged(self, tokens: Tensor, sizes: Sequence[Sequence[int]]) -> list[Merged]:
        """Projected tiles of all images ``[tiles, N, d]`` to each image's tokens."""
        return super()._merged(pool_tiles(tokens, self.config.pooling), sizes)

    def _covered(self, side: int) -> float:
        """The part of a tile's side that its ``side`` tokens see: average and maximum leave an odd patch out."""
        seen = min(2 * side / self.model.vision_tower.grid, 1.0) if self.config.pooling in ("average", "max") else 1.0
        return seen * super()._covered(side)

    def denoise(self, prefix: Prefix, response: Tensor, cache: Any = None) -> Tensor:
        """One denoising pass: int64 ``[B, L]`` to logits ``[B, L, V]``, aligned in both variants.

        ``cache`` is that of `cache_prefix`: the prompt has then not seen the response.
        """
        if cache is None:
            length = response.shape[1]
            logits = self.lm_head(self._response_hidden(prefix, response, length + self.shift)[:, :length])
        else:
            hidden = self._hidden_after(prefix, response, cache)
            logits = self.lm_head(hidden[:, : hidden.shape[1] - self.shift])
            if self.shift:
                logits = torch.cat((cache["first_logits"][:, None], logits), dim=1)
        # The head of a model spread over devices is not where the response is.
        return logits.to(response.device)

    def denoise_slots(
        self, prefix: Prefix, response: Tensor, slots: Tensor, past: Past | None = None, *, keep: bool = False
    ) -> tuple[Tensor, Past | None]:
        """See `disp.models.interface.MDLM.denoise_slots`."""
        return denoise_slots(self.model, self.lm_head, prefix, response, slots, past, keep=keep, shift=self.shift)

    def unaligned_logits(self, prefix: Prefix, response: Tensor) -> Tensor:
        """Logits ``[B, 1 + L, V]`` as the head puts them out: of the last prompt position, then of the response."""
        return self.lm_head(self._response_hidden(prefix, response, 1 + response.shape[1]))

    def _response_hidden(self, prefix: Prefix, response: Tensor, rows: int) -> Tensor:
        embeds = torch.cat((prefix.embeds, self.model.embed_tokens(response)), dim=1)
        return self.model.hidden(embeds, _valid(prefix, response.shape[1]), rows=rows)

    # --- prefix cache ---------------------------------------------------------------------------------------------

    def cache_prefix(self, prefix: Prefix) -> dict[str, Any]:
        """Keys and values of a prompt that sees itself only (the published ``prefix_lm``).

        Answers differ from those without it, for there the prompt sees the response too.

        Returns:
            ``keys`` and ``values``, one tensor ``[B, kv_heads, P, head_dim]`` a layer; for Dream also
            ``first_logits`` ``[B, V]``, the prompt's prediction of slot 0.
        """
        table, mask = attention_inputs(prefix.attention_mask, self.config.head_dim, self.config.rope_theta)
        x = prefix.embeds
        keys, values = [], []
        for layer in self.model.layers:
            x, key, value = block_after(layer, x, table, mask, None)
            keys.append(key)
            values.append(value)
        cache: dict[str, Any] = {"keys": tuple(keys), "values": tuple(values)}
        if self.shift:
            cache["first_logits"] = self.lm_head(self.model.norm(x[:, -1]))
        return cache

    def _hidden_after(self, prefix: Prefix, response: Tensor, cache: Mapping[str, Any]) -> Tensor:
        """Hidden states ``[B, L, d]`` of a response behind a cached prompt."""
        length = response.shape[1]
        (cos, sin), mask = attention_inputs(_valid(prefix, length), self.config.head_dim, self.config.rope_theta)
        table = cos[:, :, -length:], sin[:, :, -length:]
        x = self.model.embed_tokens(response)
        for layer, key, value in zip(self.model.layers, cache["keys"], cache["values"], strict=True):
            x, _, _ = block_after(layer, x, table, mask, (key, value))
        return self.model.norm(x)

    # --- training -------------------------------------------------------------------------------------------------

    def noisy_loss(self, prefix: Prefix, clean: Tensor, ratio: Tensor, uniforms: Tensor) -> Tensor:
        """`sequence_loss` of one response a row, end tokens and padding included, as published."""
        before = torch.full(prefix.attention_mask.shape, IGNORED, device=clean.device)
        return self.sequence_loss(
            torch.cat((prefix.embeds, self.model.embed_tokens(clean)), dim=1),
            torch.cat((before, clean), dim=1),
            ratio,
            # Nothing of the prompt is masked, so the smallest uniform is looked for in the response.
            torch.cat((torch.ones(before.shape, device=clean.device), uniforms.float()), dim=1),
            _valid(prefix, clean.shape[1]),
        )

    def sequence_loss(  # type: ignore[override]  # no conversation mask in this family
        self,
        embeds: Tensor,
        labels: Tensor,
        ratio: Tensor,
        uniforms: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The published training loss on whole sequences: mean cross-entropy over two complementary masks.

        Each supervised token is masked, and predicted, in exactly one of the two. There is no 1/t weight.

        Args:
            embeds: float ``[B, T, d]``, prompts, images and answers.
            labels: int64 ``[B, T]``, -100 where nothing is supervised.
            ratio: float ``[B]``, t.
            uniforms: float ``[B, T]``.
            attention_mask: bool ``[B, T]``, false at padding; None for no padding.
        """
        # 1. The two masks, one below the other.
        masked, targets = complementary_pair(labels, ratio, uniforms, fill=self.config.token_ids.get("fill"))
        noisy = torch.where(masked[..., None], self.mask_embedding.to(embeds.dtype), embeds.repeat(2, 1, 1))
        valid = masked.new_ones(embeds.shape[:2]) if attention_mask is None else attention_mask
        # 2. The row that predicts a token: its own, or in Dream the one before.
        length = targets.shape[1]
        targets = targets[:, self.shift :]
        wanted = targets != IGNORED
        first = int(wanted.any(0).long().argmax()) if wanted.any() else 0
        hidden = self.model.hidden(noisy, valid.repeat(2, 1), rows=length - first)
        # 3. Logits of the targets only: with a large vocabulary the others' would take most of the memory.
        wanted, targets = wanted[:, first:], targets[:, first:]
        logits = self.lm_head(hidden[:, : wanted.shape[1]][wanted]).float().to(targets.device)
        return F.cross_entropy(logits, targets[wanted], reduction="sum") / wanted.sum().clamp(min=1)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def official_state_dict(self, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights, or those of ``state_dict``, under the published names."""
        weights = self.state_dict() if state_dict is None else state_dict
        variant = self.config.variant
        return {official_name(name, variant): tensor for name, tensor in weights.items()} | self.unused_weights


def _valid(prefix: Prefix, length: int) -> Tensor:
    """Bool ``[B, P + L]``: the prefix's attention mask, and true for a response of ``length`` tokens."""
    return F.pad(prefix.attention_mask, (0, length), value=True)


def pooled_side(side: int, mode: str) -> int:
    """Tokens on each side of a tile after pooling: "bilinear" rounds an odd side up, "average" and "max" down."""
    return {"none": side, "bilinear": math.ceil(side / 2)}.get(mode, side // 2)


def pool_tiles(tokens: Tensor, mode: str) -> Tensor:
    """Each tile's tokens ``[tiles, g * g, d]`` at half the resolution; "none" leaves them as they are.

    "bilinear" rounds an odd side up (27 to 14), "average" and "max" round it down.
    """
    if mode == "none":
        return tokens
    side = math.isqrt(tokens.shape[1])
    maps = tokens.transpose(1, 2).unflatten(2, (side, side))
    if mode == "bilinear":
        maps = F.interpolate(maps, (pooled_side(side, mode),) * 2, mode="bilinear")
    elif mode == "average":
        maps = F.avg_pool2d(maps, 2)
    elif mode == "max":
        maps = F.max_pool2d(maps, 2)
    else:
        raise ValueError(f"pooling must be one of {', '.join(POOLING)}, got {mode!r}")
    return maps.flatten(2).transpose(1, 2)
