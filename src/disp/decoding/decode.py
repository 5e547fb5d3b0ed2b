"""Decoding: fill the open response slots, most confident first (LLaDA, arXiv 2502.09992, section 2.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from disp.data.sample import Query, batches
from disp.draws import generator
from disp.errors import DispError, unknown_name
from disp.models.interface import MDLM, Prefix

REMASKING = ("low_confidence", "random", "entropy", "margin")
SCHEDULES = ("shift", "cosine", "linear")
SAMPLERS = ("llada", "dream", "dim", "canvas")


@dataclass(frozen=True)
class DecodeConfig:
    """How responses are decoded.

    Attributes:
        gen_length: response slots L.
        steps: denoising steps over the whole response; each step commits ``L / steps`` tokens.
        block_length: blocks decoded one after the other; None for one block of ``gen_length``.
        remasking: which predictions stay masked: those of least probability ("low_confidence"), of largest entropy, of
            least margin between the two likeliest tokens, or random ones.
        temperature: 0 for greedy; otherwise tokens are drawn with Gumbel noise scaled by it.
        threshold: also commit every prediction at least this confident, which ends early; None to switch off.
        cfg_scale: classifier-free guidance: logits ``u + (cfg_scale + 1) (c - u)``, u those of the prefix without its
            content (`MDLM.unconditional`); 0 to switch off.
        stop: texts or token sequences; what follows the earliest one is not decoded, and the answer ends before it.
        suffix: token ids that stand after the response while it is decoded, and at the end of the answer.
        schedule: how many tokens each step commits: None for equal shares; see `commit_schedule`.
        schedule_shift: the shift of the "shift" schedule.
        prefix_cache: compute what the family caches of the prefix once (`MDLM.cache_prefix`). Whether that changes the
            answers is a property of the family.
        ban_mask: never predict the mask token. False reproduces published samplers token by token: a slot for which
            the mask is predicted stays open, and may stay so to the end.
        sampler: "llada" is the sampler described above; "dream" and "dim" are those of `disp.decoding.dream`,
            "canvas" that of `disp.decoding.canvas`.
        algorithm: of the samplers "dream" and "dim": which slots they fill first.
        algorithm_temperature: of the sampler "dream": noise in that choice; 0 for none.
        confidence_threshold: of the sampler "dim": fill every slot at least this confident; None to switch off.
        top_k: of the samplers "dream" and "dim": draw among this many tokens; None for all.
        top_p: of the samplers "dream" and "dim": draw among the likeliest tokens of this total probability.
        step_ratio: of the sampler "dream": the part of its time grid that is run; None for all of it.
    """

    gen_length: int = 32
    steps: int = 32
    block_length: int | None = None
    remasking: Literal["low_confidence", "random", "entropy", "margin"] = "low_confidence"
    temperature: float = 0.0
    threshold: float | None = None
    cfg_scale: float = 0.0
    stop: tuple[str | tuple[int, ...], ...] = ()
    suffix: tuple[int, ...] = ()
    schedule: Literal["shift", "cosine", "linear"] | None = None
    schedule_shift: float = 3.0
    prefix_cache: bool = False
    ban_mask: bool = True
    sampler: Literal["llada", "dream", "dim", "canvas"] = "llada"
    algorithm: str = "origin"
    algorithm_temperature: float = 0.0
    confidence_threshold: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    step_ratio: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            raise DispError(f"stop must be a list of texts or of token sequences, got the text {self.stop!r}")
        if self.sampler not in SAMPLERS:
            raise unknown_name("sampler", str(self.sampler), SAMPLERS)
        if self.sampler == "llada":
            self._check_blocks()
        elif self.steps < 1 or self.gen_length < 1:
            raise DispError(f"gen_length and steps must be at least 1, got {self.gen_length} and {self.steps}")
        if self.schedule is not None and self.schedule not in SCHEDULES:
            raise unknown_name("schedule", str(self.schedule), SCHEDULES)
        if self.schedule_shift <= 0:
            raise DispError(f"schedule_shift must be positive, got {self.schedule_shift}")
        for temperature in (self.temperature, self.algorithm_temperature):
            if not temperature >= 0:
                raise DispError(f"temperature must be at least 0, got {temperature}")
        for name in ("threshold", "confidence_threshold", "top_p", "step_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise DispError(f"{name} must be in (0, 1], got {value}")
        if self.top_k is not None and self.top_k < 1:
            raise DispError(f"top_k must be at least 1, got {self.top_k}")
        if self.cfg_scale < 0:
            raise DispError(f"cfg_scale must be at least 0, got {self.cfg_scale}")

    def _check_blocks(self) -> None:
        block = self.gen_length if self.block_length is None else self.block_length
        if block < 1:
            raise DispError(f"gen_length and block_length must be at least 1, got {self.gen_length} and {block}")
        if self.gen_length % block:
            raise DispError(f"gen_length must be a multiple of block_length ({block}), got {self.gen_length}")
        blocks = self.gen_length // block
        if self.steps < blocks or self.steps % blocks:
            raise DispError(f"steps must be a multiple of the number of blocks ({blocks}), got {self.steps}")
        if self.schedule is not None and self.steps > self.gen_length:
            raise DispError(f"a schedule needs at most one step a slot, got {self.steps} for {self.gen_length} slots")
        if self.remasking not in REMASKING:
            raise DispError(f"remasking must be one of {', '.join(map(repr, REMASKING))}, got {self.remasking!r}")


def own_settings(model: MDLM, **given: Any) -> DecodeConfig:
    """How the model decodes by itself, but for the settings that are given and not None."""
    settings = {"gen_length": model.gen_length, **model.generation_defaults}
    return DecodeConfig(**{**settings, **{name: value for name, value in given.items() if value is not None}})


@dataclass(frozen=True)
class Decoded:
    """Decoded responses.

    Attributes:
        ids: int64 ``[B, L + len(suffix)]``, end tokens after a row's answer where a stop sequence cut it.
        lengths: int64 ``[B]``, tokens of each answer, the suffix included.
    """

    ids: Tensor
    lengths: Tensor


def commit_quotas(slots: int, steps: int) -> list[int]:
    """How many tokens each step commits: as even as possible, the larger shares first, ``slots`` in all."""
    return [slots // steps + (step < slots % steps) for step in range(steps)]


def commit_schedule(slots: int, steps: int, schedule: str | None = None, shift: float = 3.0) -> list[int]:
    """How many tokens each step commits under one of LaViDa's schedules (arXiv 2505.16839), ``slots`` in all.

    The published decoder runs the counts of each schedule backwards, which is kept here.

    Args:
        slots: tokens to commit.
        steps: at most ``slots`` with a schedule.
        schedule: None for `commit_quotas`, "shift", "cosine" or "linear".
        shift: of the "shift" schedule; below 1 the first steps commit more, above 1 the last ones.
    """
    if schedule is None:
        return commit_quotas(slots, steps)
    if not 1 <= steps <= slots:
        raise ValueError(f"a schedule needs 1 to {slots} steps for {slots} slots, got {steps}")
    # 1. The part of the slots that is filled after each step; in float32, for the floor sees the last digit.
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float32)
    if schedule == "shift":
        parts = shift * times / (1 + (shift - 1) * times)
    elif schedule == "cosine":
        parts = (1 - torch.cos(math.pi * times)) / 2
    else:
        parts = times
    filled = [int(part) for part in (parts * slots).floor()]
    filled[-1] = slots  # rounding may leave out a slot
    # 2. At least one token a step, taken from the others in turn.
    counts = [max(after - before, 1) for before, after in pairwise(filled)]
    surplus, step = sum(counts) - slots, 0
    while surplus > 0:
        if counts[step] > 1:
            counts[step] -= 1
            surplus -= 1
        step = (step + 1) % steps
    # 3. Backwards.
    return counts[::-1]


def decode(
    model: MDLM,
    prefix: Prefix,
    config: DecodeConfig | None = None,
    *,
    keys: Sequence[str] | None = None,
    seed: int = 0,
) -> Tensor:
    """Denoise a batch of responses from all masks.

    Which slots are open is a boolean tensor of this function's own. Masked visual tokens carry the mask embedding
    too, so reading the open slots off the embeddings, as some published decoders do, would fill image positions.

    Args:
        model: the MDLM.
        prefix: prompts and visual tokens, B rows.
        config: see `DecodeConfig`; the model's own settings if None.
        keys: one key a row for random draws; needed when ``remasking`` is random or ``temperature`` is not 0.
        seed: the run's seed.

    Returns:
        int64 ``[B, L]``; what follows a row's first end token is end-of-text padding or undefined. With a suffix,
        ``[B, L + len(suffix)]``.
    """
    return decode_with_lengths(model, prefix, config, keys=keys, seed=seed).ids


@torch.no_grad()
def decode_with_lengths(
    model: MDLM,
    prefix: Prefix,
    config: DecodeConfig | None = None,
    *,
    keys: Sequence[str] | None = None,
    seed: int = 0,
) -> Decoded:
    """`decode`, which tells besides how long each answer is."""
    config = config or own_settings(model)
    if config.sampler in ("dream", "dim"):
        from disp.decoding.dream import decode_dream

        ids = decode_dream(model, prefix, config, keys=keys, seed=seed)
        return Decoded(ids, torch.full((len(ids),), ids.shape[1], device=ids.device))
    if config.sampler == "canvas":
        from disp.decoding.canvas import decode_canvas

        ids = decode_canvas(model, prefix, config, keys=keys, seed=seed)
        return Decoded(ids, torch.full((len(ids),), ids.shape[1], device=ids.device))
    random = config.temperature > 0 or config.remasking == "random"
    if random and keys is None:
        raise ValueError("random remasking and sampling need `keys`, one a row")
    batch, length, block = len(prefix), config.gen_length, config.block_length or config.gen_length
    steps = config.steps // (length // block)
    device = prefix.embeds.device
    stops = _stop_sequences(model, config.stop)
    predict = _Predictor(model, prefix, config)
    response = torch.full((batch, length), model.mask_token_id, device=device)
    is_open = torch.ones_like(response, dtype=torch.bool)
    slots = torch.arange(length, device=device)
    ends = torch.full((batch, 1), length, device=device)  # where each row's answer stops
    for first in range(0, length, block):
        in_block = (slots >= first) & (slots < first + block)
        quotas = commit_schedule(block, steps, config.schedule, config.schedule_shift)
        for step in range(steps):
            # 1. Rows that still have something to fill in this block; the others cost nothing.
            active = (is_open & in_block & (slots < ends)).any(-1).nonzero()[:, 0]
            if not len(active):
                break
            logits = predict(response, active)  # [A, L, V]
            draws = (
                [generator(seed, "decode", keys[row], first + step) for row in active.tolist()]
                if random and keys
                else []
            )
            # 2. Predict every open slot.
            tokens, confidence = _predict(logits, config, draws)
            candidates = (is_open & in_block & (slots < ends))[active]
            confidence = confidence.masked_fill(~candidates, -torch.inf)
            # 3. Commit the most confident: this step's quota and, with a threshold, all that reach it.
            order = confidence.argsort(dim=-1, descending=True, stable=True)
            rank = order.argsort(dim=-1)
            if config.threshold is None:
                commit = candidates & (rank < quotas[step])
            else:
                # A row may be ahead of the schedule; the quota is of what the schedule still owes.
                owed = sum(quotas[: step + 1]) - (block - candidates.sum(-1, keepdim=True))
                commit = candidates & ((rank < owed.clamp(min=1)) | (confidence >= config.threshold))
            # 4. Write them. A slot that was given the mask token (`ban_mask` off) is as open as before.
            response[active] = torch.where(commit, tokens, response[active])
            is_open[active] = is_open[active] & ~(commit & (tokens != model.mask_token_id))
            # 5. A stop sequence ends the answer.
            for row in active.tolist() if stops else ():
                ends[row] = min(int(ends[row]), _first_of(response[row].tolist(), stops))
    return _finish(model, response, ends, config.suffix)


class _Predictor:
    """The model with everything that stays the same from step to step: guidance, suffix, prefix cache, banned ids."""

    def __init__(self, model: MDLM, prefix: Prefix, config: DecodeConfig):
        self.model, self.scale = model, config.cfg_scale
        prefixes = [prefix, model.unconditional(prefix)] if self.scale else [prefix]
        self.passes = [(each, model.cache_prefix(each) if config.prefix_cache else None) for each in prefixes]
        self.suffix = torch.tensor(config.suffix, dtype=torch.int64, device=prefix.embeds.device)
        self.banned = sorted({*model.banned_token_ids, *([model.mask_token_id] if config.ban_mask else [])})

    def __call__(self, response: Tensor, rows: Tensor) -> Tensor:
        """Float32 logits ``[A, L, V]`` of some rows of ``response`` ``[B, L]``."""
        batch, length = response.shape
        ids = torch.cat((response[rows], self.suffix.expand(len(rows), -1)), dim=1)
        logits, *unconditional = (self._denoise(*each, ids, rows, batch)[:, :length].float() for each in self.passes)
        if unconditional:
            logits = unconditional[0] + (self.scale + 1) * (logits - unconditional[0])
        if self.banned:
            logits[..., self.banned] = -torch.inf
        return logits

    def _denoise(self, prefix: Prefix, cache: Any, ids: Tensor, rows: Tensor, batch: int) -> Tensor:
        if len(rows) < batch:
            prefix, cache = prefix.select(rows), select_cache(cache, rows)
        return self.model.denoise(prefix, ids) if cache is None else self.model.denoise(prefix, ids, cache)


def select_cache(cache: Any, rows: Tensor) -> Any:
    """Rows of what `MDLM.cache_prefix` returned; ``rows`` int64 ``[B']``."""
    if hasattr(cache, "select") and not isinstance(cache, Tensor):
        return cache.select(rows)
    return tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, cache)


def _predict(logits: Tensor, config: DecodeConfig, draws: list[np.random.Generator]) -> tuple[Tensor, Tensor]:
    """The predicted token of each slot and the confidence that decides which are committed; both ``[A, L]``."""
    probabilities = logits.double().softmax(-1)
    if config.temperature > 0:
        uniforms = np.stack([draw.random(logits.shape[1:]) for draw in draws])
        gumbel = -torch.log(-torch.log(torch.from_numpy(uniforms).to(logits.device)))
        tokens = (logits.double() + config.temperature * gumbel).argmax(-1)
    else:
        tokens = logits.argmax(-1)
    if config.remasking == "random":
        confidence = torch.from_numpy(np.stack([draw.random(logits.shape[1]) for draw in draws])).to(logits.device)
    elif config.remasking == "entropy":
        confidence = (probabilities * torch.log(probabilities + 1e-10)).sum(-1)
    elif config.remasking == "margin":
        likeliest = probabilities.topk(2, dim=-1).values
        confidence = likeliest[..., 0] - likeliest[..., 1]
    else:
        confidence = probabilities.gather(-1, tokens[..., None])[..., 0]
    return tokens, confidence


def _stop_sequences(model: MDLM, stop: Sequence[str | tuple[int, ...]]) -> list[list[int]]:
    sequences = [
        model.tokenizer(each, add_special_tokens=False)["input_ids"] if isinstance(each, str) else list(each)
        for each in stop
    ]
    return [sequence for sequence in sequences if sequence]


def _first_of(ids: list[int], sequences: Sequence[list[int]]) -> int:
    """The first place where one of the sequences begins; the length of ``ids`` if there is none."""
    for place in range(len(ids)):
        if any(ids[place : place + len(sequence)] == sequence for sequence in sequences):
            return place
    return len(ids)


def _finish(model: MDLM, response: Tensor, ends: Tensor, suffix: tuple[int, ...]) -> Decoded:
    """Cut each row at its end, put the suffix there, fill up with end tokens."""
    length = response.shape[1] + len(suffix)
    if (ends == length).all():
        return Decoded(response, ends[:, 0])
    ids = torch.full((len(response), length), model.end_token_ids[-1], device=response.device)
    for row, end in enumerate(ends[:, 0].tolist()):
        answer = torch.cat((response[row, :end], response.new_tensor(suffix)))
        ids[row, : len(answer)] = answer
        if len(answer) < length:
            ids[row, len(answer)] = model.end_token_ids[0]
    return Decoded(ids, ends[:, 0] + len(suffix))


def answers_of(
    model: MDLM,
    prefix: Prefix,
    config: DecodeConfig | None = None,
    *,
    keys: Sequence[str] | None = None,
    seed: int = 0,
) -> list[str]:
    """What `decode` returns, as texts."""
    return model.decode_responses(decode(model, prefix, config, keys=keys, seed=seed))


def generate(
    model: MDLM,
    queries: Sequence[Query],
    config: DecodeConfig | None = None,
    *,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Answer each query.

    Args:
        model: the MDLM.
        queries: what to answer; their own responses are not read.
        config: see `DecodeConfig`; the model's own settings if None.
        seed: seed of random remasking and sampling.
        batch_size: queries a pass; the answers do not depend on it.
        progress: called with the number of queries finished after each batch.

    Returns:
        One text a query.
    """
    answers: list[str] = []
    for batch in batches(queries, batch_size):
        answers += answers_of(model, model.encode(batch), config, keys=[query.key for query in batch], seed=seed)
        progress(len(batch))
    return answers
