"""The model inside a sampler's loop: what stays the same from step to step is made once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from disp.models.interface import MDLM, Prefix


class Predictor:
    """Logits of the response from step to step, with the prefix's cache, guidance, suffix and banned tokens.

    Attributes:
        first_logits: float32 ``[B, V]``, what the prefix alone predicts for slot 0; None for families that do not
            predict it so. They return a mapping with this key from `MDLM.cache_prefix` (LaViDa's ``prefix_lm``).
    """

    def __init__(
        self,
        model: MDLM,
        prefix: Prefix,
        *,
        prefix_cache: bool,
        ban_mask: bool,
        cfg_scale: float = 0.0,
        suffix: tuple[int, ...] = (),
    ):
        """Make the cache.

        Args:
            model: the MDLM.
            prefix: prompts and visual tokens, B rows.
            prefix_cache: whether what `MDLM.cache_prefix` returns goes into every pass.
            ban_mask: whether the mask token is banned besides the model's own banned tokens.
            cfg_scale: classifier-free guidance, see `disp.decoding.llada.LladaConfig`; 0 for none.
            suffix: token ids that stand after the response in every pass.
        """
        self._model, self._scale = model, cfg_scale
        prefixes = [prefix, model.unconditional(prefix)] if cfg_scale else [prefix]
        self._passes = [(each, model.cache_prefix(each) if prefix_cache else None) for each in prefixes]
        self._suffix = torch.tensor(suffix, dtype=torch.int64, device=prefix.embeds.device)
        self._banned = sorted({*model.banned_token_ids, *([model.mask_token_id] if ban_mask else [])})
        cache = self._passes[0][1]
        first = cache.get("first_logits") if isinstance(cache, Mapping) else None
        self.first_logits: Tensor | None = None if first is None else self._ban(first.float().clone())

    def __call__(self, response: Tensor, rows: Tensor) -> Tensor:
        """float32 ``[A, L, V]``: the logits of some rows of ``response`` ``[B, L]``."""
        batch, length = response.shape
        ids = torch.cat((response[rows], self._suffix.expand(len(rows), -1)), dim=1)
        logits, *unconditional = (self._denoise(*each, ids, rows, batch)[:, :length].float() for each in self._passes)
        if unconditional:
            logits = unconditional[0] + (self._scale + 1) * (logits - unconditional[0])
        return self._ban(logits)

    def _ban(self, logits: Tensor) -> Tensor:
        if self._banned:
            logits[..., self._banned] = -torch.inf
        return logits

    def _denoise(self, prefix: Prefix, cache: Any, ids: Tensor, rows: Tensor, batch: int) -> Tensor:
        if len(rows) < batch:
            prefix, cache = prefix.select(rows), select_cache(cache, rows)
        return self._model.denoise(prefix, ids) if cache is None else self._model.denoise(prefix, ids, cache)


def select_cache(cache: Any, rows: Tensor) -> Any:
    """Rows of what `MDLM.cache_prefix` returned; ``rows`` int64 ``[B']``."""
    if hasattr(cache, "select") and not isinstance(cache, Tensor):  # a tensor's own `select` is another thing
        return cache.select(rows)
    return tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, cache)
