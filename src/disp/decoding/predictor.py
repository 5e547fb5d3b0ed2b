"""The model inside a sampler's loop: what stays the same from step to step is made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from disp.models.interface import MDLM, Past, Prefix
from disp.models.parts.slots import LEAST_SLOTS


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
        keep: bool = False,
    ):
        """Make the cache.

        Args:
            model: the MDLM.
            prefix: prompts and visual tokens, B rows.
            prefix_cache: whether what `MDLM.cache_prefix` returns goes into every pass.
            ban_mask: whether the mask token is banned besides the model's own banned tokens.
            cfg_scale: classifier-free guidance, see `disp.decoding.llada.LladaConfig`; 0 for none.
            suffix: token ids that stand after the response in every pass.
            keep: whether steps may follow that are not fresh.
        """
        self._model, self._scale = model, cfg_scale
        prefixes = [prefix, model.unconditional(prefix)] if cfg_scale else [prefix]
        self._passes = [(each, model.cache_prefix(each) if prefix_cache else None) for each in prefixes]
        self._suffix = torch.tensor(suffix, dtype=torch.int64, device=prefix.embeds.device)
        self._banned = sorted({*model.banned_token_ids, *([model.mask_token_id] if ban_mask else [])})
        self._active, self._rows = self._passes, torch.arange(len(prefix), device=prefix.embeds.device)
        self._keep = keep
        self._kept: list[Past | None] = [None] * len(self._passes)
        cache = self._passes[0][1]
        first = cache.get("first_logits") if isinstance(cache, Mapping) else None
        self.first_logits: Tensor | None = None if first is None else self._ban(first.float().clone())

    def __call__(self, response: Tensor, rows: Tensor, slots: Tensor | None = None, *, fresh: bool = True) -> Tensor:
        """Logits of some rows of ``response``.

        Args:
            response: int64 ``[B, L]``.
            rows: int64 ``[A]``, ascending.
            slots: int64 ``[A, M]``, the slots that are looked at, see `first_open`; None for all.
            fresh: compute the prompt, too, and not only what follows it. A step that is not fresh comes after one that
                was, of these rows or more.

        Returns:
            float32 ``[A, M, V]``.
        """
        length = response.shape[1]
        ids = torch.cat((response[rows], self._suffix.expand(len(rows), -1)), dim=1)
        if not torch.equal(rows, self._rows):
            # Rows that are finished leave what was kept of them; others may come back, in the next block.
            if not fresh:
                self._kept = [
                    None if kept is None else kept.select(torch.searchsorted(self._rows, rows)) for kept in self._kept
                ]
            whole = len(rows) == len(self._passes[0][0])
            self._rows = rows
            self._active = self._passes if whole else [_select(*each, rows) for each in self._passes]
        logits, *unconditional = (
            self._logits(index, ids, slots, fresh)[:, :length].float() for index in range(len(self._active))
        )
        if unconditional:
            logits = unconditional[0] + (self._scale + 1) * (logits - unconditional[0])
        return self._ban(logits)

    def _logits(self, index: int, ids: Tensor, slots: Tensor | None, fresh: bool) -> Tensor:
        """What one pass predicts of the active rows."""
        prefix, cache = self._active[index]
        if slots is None or cache is not None:
            logits = self._model.denoise(prefix, ids) if cache is None else self._model.denoise(prefix, ids, cache)
            return logits if slots is None else logits.gather(1, slots[..., None].expand(-1, -1, logits.shape[-1]))
        past = None if fresh else self._kept[index]
        logits, self._kept[index] = self._model.denoise_slots(prefix, ids, slots, past, keep=self._keep)
        return logits

    def _ban(self, logits: Tensor) -> Tensor:
        if self._banned:
            logits[..., self._banned] = -torch.inf
        return logits


def _select(prefix: Prefix, cache: Any, rows: Tensor) -> tuple[Prefix, Any]:
    return prefix.select(rows), None if cache is None else select_cache(cache, rows)


def select_cache(cache: Any, rows: Tensor) -> Any:
    """Rows of what `MDLM.cache_prefix` returned; ``rows`` int64 ``[B']``."""
    if hasattr(cache, "select") and not isinstance(cache, Tensor):  # a tensor's own `select` is another thing
        return cache.select(rows)
    return tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, cache)


def first_open(waiting: Tensor, only: bool) -> Tensor:
    """The slots that a step looks at.

    Args:
        waiting: bool ``[A, L]``, those that may be filled.
        only: leave the others out, as far as the rows of a batch have equally many.

    Returns:
        int64 ``[A, M]``: those that may be filled from left to right, then others; or all L in order.
    """
    rows, length = waiting.shape
    if not only:
        return torch.arange(length, device=waiting.device).expand(rows, -1)
    count = min(max(int(waiting.sum(-1).max()), LEAST_SLOTS), length)
    return waiting.int().argsort(dim=-1, descending=True, stable=True)[:, :count]


def all_sure(logits: Tensor, waiting: Tensor, gap: float) -> Tensor:
    """Bool ``[A, 1]``: whether in all slots of a row that wait the two likeliest tokens are ``gap`` apart.

    Args:
        logits: float ``[A, M, V]``.
        waiting: bool ``[A, M]``.
        gap: in nats.
    """
    likeliest = logits.topk(2, dim=-1).values
    return ((likeliest[..., 0] - likeliest[..., 1] >= gap) | ~waiting).all(-1, keepdim=True)


def at_end(response: Tensor, is_open: Tensor, ends: Sequence[int]) -> Tensor:
    """Bool ``[B, 1]``: whether a row has an end token with nothing open before it; what follows is never read."""
    ended = torch.isin(response, torch.tensor(ends, device=response.device))
    return (ended & (is_open.cumsum(-1) == 0)).any(-1, keepdim=True)
