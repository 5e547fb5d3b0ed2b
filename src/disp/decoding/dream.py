"""The samplers of Dream (arXiv 2508.15487) and Dimple (arXiv 2505.16990), for models that grew out of Qwen2.5.

Both walk down the time grid 1 = t_0 > t_1 > ... > t_S = 0.001, where t is the part of the response that is still
masked. "dream" commits ``int(open * (1 - t_{i+1} / t_i))`` slots at step i, often none at all in the first steps of a
short answer. "dim" goes from the part that is really masked to the first later time that is worth at least one slot,
and, with a confidence threshold, commits every slot above it instead. Neither ever masks a slot again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from disp.decoding.decode import DecodeConfig, commit_schedule
from disp.draws import generator
from disp.errors import DispError, unknown_name
from disp.models.interface import MDLM, Prefix

# "origin" and "origin-ratio" choose slots at random, "autoregressive" from the left, the others by confidence.
ALGORITHMS = {
    "dream": ("origin", "autoregressive", "maskgit_plus", "topk_margin", "entropy"),
    "dim": ("origin", "origin-ratio", "autoregressive", "maskgit_plus", "topk_margin", "entropy"),
}
RANDOM_ALGORITHMS = ("origin", "origin-ratio")
LAST_TIME = 1e-3

# Settings of the sampler "llada" that these two do not have, and the value that means "not set".
_FOREIGN: dict[str, Any] = {"block_length": None, "threshold": None, "cfg_scale": 0.0, "stop": (), "suffix": ()}


@torch.no_grad()
def decode_dream(
    model: MDLM,
    prefix: Prefix,
    config: DecodeConfig,
    *,
    keys: Sequence[str] | None = None,
    seed: int = 0,
    original_confidence: bool | None = None,
) -> Tensor:
    """Denoise a batch of responses with the sampler "dream" or "dim".

    Rows are independent: each has its own quotas, and its random draws are keyed by row and step. Published code counts
    the open slots of all rows together instead, so it decodes batches of one; the two agree there.

    With ``config.prefix_cache``, what `MDLM.cache_prefix` returns goes into every pass. If it is a mapping with
    ``"first_logits"`` (float ``[B, V]``), the family predicts slot 0 from the prefix alone, once: it is committed
    before the first step and is none of the slots that the steps share (LaViDa's ``prefix_lm``).

    Args:
        model: the MDLM; ``denoise`` aligns its logits.
        prefix: prompts and visual tokens, B rows.
        config: ``steps`` is the S of the time grid; with ``step_ratio`` only its first ``int(gen_length * step_ratio)``
            steps are run, the last of which commits what is left; ``schedule`` replaces the grid's quotas.
        keys: one key a row; needed where anything is drawn.
        seed: the run's seed.
        original_confidence: take the confidence from the model's own distribution, not from the tempered and cut one
            that tokens are drawn from. By default "dim" does and "dream" does not, as published.

    Returns:
        int64 ``[B, L]``. With ``ban_mask`` every slot is filled; without it a slot for which the mask token was
        predicted stays as it is, and "autoregressive" fills exactly one slot a step, as published.

    Raises:
        DispError: the algorithm is unknown, or a setting is one of the sampler "llada".
    """
    _check(config)
    if keys is None and draws_anything(config):
        raise ValueError(f"sampling and the algorithm {config.algorithm!r} need `keys`, one a row")
    if original_confidence is None:
        original_confidence = config.sampler == "dim"
    predict = _Predictor(model, prefix, config)
    response = torch.full((len(prefix), config.gen_length), model.mask_token_id, device=prefix.embeds.device)
    is_open = torch.ones_like(response, dtype=torch.bool)
    if predict.first_logits is not None:
        response[:, 0] = predict.first_logits.argmax(-1)
        is_open[:, 0] = False
    steps, total = steps_run(config), int(is_open[0].sum())
    counts = None
    if config.schedule is not None and total:
        steps = min(steps, total)
        counts = commit_schedule(total, steps, config.schedule, config.schedule_shift)
    grid = time_grid(config.steps)
    for step in range(steps):
        active = is_open.any(-1).nonzero()[:, 0]
        if not len(active):
            break
        logits = predict(response, active)  # [A, L, V]
        for place, row in enumerate(active.tolist()):
            slots = is_open[row].nonzero()[:, 0]
            uniforms = None
            if keys is not None and draws_anything(config):
                # By slot, so that which slots are open changes nothing for the others.
                numbers = generator(seed, "decode", keys[row], step).random((2, config.gen_length))
                uniforms = torch.from_numpy(numbers).to(slots.device)[:, slots]
            tokens, confidence = predict_tokens(
                logits[place, slots], config, None if uniforms is None else uniforms[0], original_confidence
            )
            chosen = _choose(
                confidence,
                config,
                None if uniforms is None else uniforms[1],
                total=total,
                grid=grid,
                step=step,
                steps=steps,
                quota=None if counts is None else counts[step],
            )
            response[row, slots[chosen]] = tokens[chosen]
            is_open[row, slots[chosen]] = tokens[chosen] == model.mask_token_id
    return response


def draws_anything(config: DecodeConfig) -> bool:
    """Whether any random number is drawn."""
    return config.temperature > 0 or config.algorithm in RANDOM_ALGORITHMS or config.algorithm_temperature > 0


def steps_run(config: DecodeConfig) -> int:
    """How many steps of the grid are run."""
    if config.step_ratio is None:
        return config.steps
    return min(max(int(config.gen_length * config.step_ratio), 1), config.steps)


def time_grid(steps: int) -> np.ndarray:
    """float32 ``[S + 1]``, from 1 to 0.001. Quotas are rounded down, so they depend on its last bits."""
    return torch.linspace(1, LAST_TIME, steps + 1, dtype=torch.float32).numpy()


def dream_share(grid: np.ndarray, step: int, *, last: bool) -> np.float32:
    """The part of the open slots that step ``step`` of the sampler "dream" commits."""
    return np.float32(1) if last else np.float32(1) - grid[step + 1] / grid[step]


def dim_share(grid: np.ndarray, step: int, open_slots: int, total: int) -> np.float32:
    """The part of the open slots that the sampler "dim" commits at ``step``.

    The grid is entered at the part that is masked, wherever the steps before have led, and followed to the first time
    that is worth a slot; the last time is worth all of them.

    Args:
        grid: as `time_grid` returns it.
        step: index of the step; times up to and including ``grid[step]`` are past.
        open_slots: slots that are open, at least one.
        total: slots that were open at first.
    """
    time = np.float32(open_slots) / np.float32(total)
    below = np.flatnonzero(grid < time)
    for later in grid[max(int(below[0]), step + 1) :] if len(below) else ():
        share = np.float32(1) - later / time
        if later > grid[-1] and int(np.float32(open_slots) * share) >= 1:
            return share
    return np.float32(1)


def cut_logits(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Take away all but the likeliest tokens.

    Args:
        logits: float ``[M, V]``.
        top_k: how many tokens stay, more where the last of them has equals; None for all.
        top_p: the likeliest tokens stay up to and including the one that brings their probability above this.

    Returns:
        A new tensor where the dtype's lowest number stands at what was taken away. As published, ``top_p`` comes first.
    """
    lowest = torch.finfo(logits.dtype).min
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        total = ordered.softmax(-1).cumsum(-1)
        # A token goes if those before it already have more than top_p.
        goes = torch.cat((torch.zeros_like(total[:, :1], dtype=torch.bool), total[:, :-1] > top_p), dim=-1)
        logits = logits.masked_fill(torch.zeros_like(goes).scatter(-1, order, goes), lowest)
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], lowest)
    return logits


def predict_tokens(
    logits: Tensor, config: DecodeConfig, uniforms: Tensor | None, original_confidence: bool
) -> tuple[Tensor, Tensor]:
    """The predicted token of each open slot and the confidence in it.

    Args:
        logits: float ``[M, V]``.
        config: its temperature, cuts and algorithm.
        uniforms: float64 ``[M]`` in [0, 1), used where the temperature is not 0.
        original_confidence: see `decode_dream`.

    Returns:
        int64 ``[M]`` and float32 ``[M]``.
    """
    cut = cut_logits(logits / config.temperature if config.temperature > 0 else logits, config.top_k, config.top_p)
    probabilities = cut.softmax(-1)
    if config.temperature > 0 and uniforms is not None:
        total = probabilities.double().cumsum(-1)
        # The first token whose cumulative probability exceeds the draw: one of probability zero is never it.
        tokens = torch.searchsorted(total, uniforms[:, None] * total[:, -1:], right=True)[:, 0]
        tokens = torch.minimum(tokens, (total < total[:, -1:]).sum(-1))
    else:
        tokens = probabilities.argmax(-1)
    if original_confidence:
        probabilities = logits.softmax(-1)
    if config.algorithm == "topk_margin":
        likeliest = probabilities.topk(2, dim=-1).values
        return tokens, likeliest[:, 0] - likeliest[:, 1]
    if config.algorithm == "entropy":
        return tokens, (probabilities * torch.log(probabilities + 1e-10)).sum(-1)
    return tokens, probabilities.gather(-1, tokens[:, None])[:, 0]


def _choose(
    confidence: Tensor,
    config: DecodeConfig,
    uniforms: Tensor | None,
    *,
    total: int,
    grid: np.ndarray,
    step: int,
    steps: int,
    quota: int | None,
) -> Tensor:
    """Indices into the open slots of one row: those that this step commits.

    Args:
        confidence: float ``[M]``, of the open slots from left to right.
        config: see `DecodeConfig`.
        uniforms: float64 ``[M]``; None where nothing is drawn.
        total: slots of the row that were open at first.
        grid: as `time_grid` returns it.
        step: index of this step.
        steps: how many are run.
        quota: what a schedule prescribes, in place of the grid's share.
    """
    count, last = len(confidence), step == steps - 1
    everything = torch.arange(count, device=confidence.device)
    # 1. Confident decoding: whatever is above the threshold, if anything is.
    if config.sampler == "dim" and config.confidence_threshold is not None:
        sure = everything if last else (confidence > config.confidence_threshold).nonzero()[:, 0]
        if len(sure):
            return sure
    # 2. From the left. Published code takes one a step even where the steps do not reach the end.
    if config.algorithm == "autoregressive":
        return everything[: -(-count // (steps - step)) if config.ban_mask else 1]
    # 3. How many.
    if config.sampler == "dim":
        share = dim_share(grid, step, count, total) if not last else np.float32(1)
    else:
        share = dream_share(grid, step, last=last)
    number = int(np.float32(count) * share) if quota is None else min(quota, count)
    if last and (quota is None or config.ban_mask):
        number = count
    # 4. Which.
    if config.algorithm in RANDOM_ALGORITHMS and uniforms is not None:
        if config.sampler == "dim" and config.algorithm == "origin":
            return uniforms.argsort()[:number]
        return (uniforms < float(share)).nonzero()[:, 0]
    if config.algorithm_temperature > 0 and uniforms is not None:
        # The largest of confidence / T + Gumbel noise are a draw without replacement from softmax(confidence / T).
        confidence = confidence.double() / config.algorithm_temperature - torch.log(-torch.log(uniforms))
    return confidence.argsort(descending=True, stable=True)[:number]


class _Predictor:
    """The model with what stays the same from step to step: prefix, cache, banned ids."""

    def __init__(self, model: MDLM, prefix: Prefix, config: DecodeConfig):
        self.model, self.prefix = model, prefix
        self.cache = model.cache_prefix(prefix) if config.prefix_cache else None
        self.banned = sorted({*model.banned_token_ids, *([model.mask_token_id] if config.ban_mask else [])})
        first = self.cache.get("first_logits") if isinstance(self.cache, Mapping) else None
        self.first_logits: Tensor | None = None if first is None else self._ban(first)

    def _ban(self, logits: Tensor) -> Tensor:
        logits = logits.float().clone()
        logits[..., self.banned] = -torch.inf
        return logits

    def __call__(self, response: Tensor, rows: Tensor) -> Tensor:
        """float32 ``[A, L, V]``: the logits of some rows of ``response`` ``[B, L]``."""
        prefix, cache = self.prefix, self.cache
        if len(rows) < len(response):
            prefix, response, cache = prefix.select(rows), response[rows], _select(cache, rows)
        logits = self.model.denoise(prefix, response) if cache is None else self.model.denoise(prefix, response, cache)
        return self._ban(logits)


def _select(cache: Any, rows: Tensor) -> Any:
    """Rows of what `MDLM.cache_prefix` returned; ``rows`` int64 ``[B']``."""
    if hasattr(cache, "select"):
        return cache.select(rows)
    return tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, cache)


def _check(config: DecodeConfig) -> None:
    choices = ALGORITHMS[config.sampler]
    if config.algorithm not in choices:
        raise unknown_name(f"algorithm of the sampler {config.sampler!r}", config.algorithm, choices)
    for name, neutral in _FOREIGN.items():
        if getattr(config, name) != neutral:
            raise DispError(
                f"{name} is {getattr(config, name)!r}, but the sampler {config.sampler!r} has no such setting; "
                "leave it out, or set the sampler to 'llada'"
            )
