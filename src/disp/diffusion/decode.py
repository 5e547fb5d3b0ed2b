"""Decoding: fill the open response slots, most confident first (LLaDA, arXiv 2502.09992, section 2.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from disp.data.sample import Query
from disp.draws import generator
from disp.errors import DispError
from disp.models.interface import MDLM, Prefix


@dataclass(frozen=True)
class DecodeConfig:
    """How responses are decoded.

    Attributes:
        gen_length: response slots L.
        steps: denoising steps over the whole response; each step commits ``L / steps`` tokens.
        block_length: blocks decoded one after the other; None for one block of ``gen_length``.
        remasking: which predictions stay masked: the least confident ones, or random ones.
        temperature: 0 for greedy; otherwise tokens are drawn with Gumbel noise scaled by it.
        threshold: also commit every prediction at least this confident, which ends early; None to switch off.
    """

    gen_length: int = 32
    steps: int = 32
    block_length: int | None = None
    remasking: Literal["low_confidence", "random"] = "low_confidence"
    temperature: float = 0.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        block = self.gen_length if self.block_length is None else self.block_length
        if block < 1:
            raise DispError(f"gen_length and block_length must be at least 1, got {self.gen_length} and {block}")
        if self.gen_length % block:
            raise DispError(f"gen_length must be a multiple of block_length ({block}), got {self.gen_length}")
        blocks = self.gen_length // block
        if self.steps < blocks or self.steps % blocks:
            raise DispError(f"steps must be a multiple of the number of blocks ({blocks}), got {self.steps}")
        if self.remasking not in ("low_confidence", "random"):
            raise DispError(f"remasking must be 'low_confidence' or 'random', got {self.remasking!r}")
        if self.temperature < 0:
            raise DispError(f"temperature must be at least 0, got {self.temperature}")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise DispError(f"threshold must be in (0, 1], got {self.threshold}")


def commit_quotas(slots: int, steps: int) -> list[int]:
    """How many tokens each step commits: as even as possible, the larger shares first, ``slots`` in all."""
    return [slots // steps + (step < slots % steps) for step in range(steps)]


@torch.no_grad()
def decode(
    model: MDLM,
    prefix: Prefix,
    config: DecodeConfig,
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
        config: see `DecodeConfig`.
        keys: one key a row for random draws; needed when ``remasking`` is random or ``temperature`` is not 0.
        seed: the run's seed.

    Returns:
        int64 ``[B, L]``; what follows a row's first end token is end-of-text padding or undefined.
    """
    random = config.temperature > 0 or config.remasking == "random"
    if random and keys is None:
        raise ValueError("random remasking and sampling need `keys`, one a row")
    batch, block = len(prefix), config.block_length or config.gen_length
    steps = config.steps // (config.gen_length // block)
    response = torch.full((batch, config.gen_length), model.mask_token_id, device=prefix.embeds.device)
    is_open = torch.ones_like(response, dtype=torch.bool)
    for first in range(0, config.gen_length, block):
        in_block = torch.zeros_like(is_open)
        in_block[:, first : first + block] = True
        quotas = commit_quotas(block, steps)
        for step in range(steps):
            # 1. Rows that still have something to fill in this block; the others cost nothing.
            active = (is_open & in_block).any(-1).nonzero()[:, 0]
            if not len(active):
                break
            sub_prefix = prefix if len(active) == batch else prefix.select(active)
            logits = model.denoise(sub_prefix, response[active]).float()  # [A, L, V]
            # The mask token is not an answer.
            logits[..., model.mask_token_id] = -torch.inf
            draws = (
                [generator(seed, "decode", keys[row], first + step) for row in active.tolist()]
                if random and keys
                else []
            )
            # 2. Predict every open slot.
            tokens, confidence = _predict(logits, config, draws)
            candidates = (is_open & in_block)[active]
            confidence = confidence.masked_fill(~candidates, -torch.inf)
            # 3. Commit the most confident: this step's quota and, with a threshold, all that reach it.
            order = confidence.argsort(dim=-1, descending=True, stable=True)
            rank = order.argsort(dim=-1)
            # With a threshold a row may be ahead of the schedule; the quota is of what the schedule still owes.
            owed = sum(quotas[: step + 1]) - (block - candidates.sum(-1, keepdim=True))
            least = torch.ones_like(owed) if config.threshold is not None else torch.zeros_like(owed)
            commit = candidates & (rank < torch.maximum(owed, least))
            if config.threshold is not None:
                commit |= candidates & (confidence >= config.threshold)
            # 4. Write them.
            response[active] = torch.where(commit, tokens, response[active])
            is_open[active] = is_open[active] & ~commit
    return response


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
    else:
        confidence = probabilities.gather(-1, tokens[..., None])[..., 0]
    return tokens, confidence


def generate(
    model: MDLM,
    queries: Sequence[Query],
    config: DecodeConfig,
    *,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Answer each query.

    Args:
        model: the MDLM.
        queries: what to answer; their own responses are not read.
        config: see `DecodeConfig`.
        seed: seed of random remasking and sampling.
        batch_size: queries a pass; the answers do not depend on it.
        progress: called with the number of queries finished after each batch.

    Returns:
        One text a query.
    """
    answers: list[str] = []
    for start in range(0, len(queries), batch_size):
        batch = queries[start : start + batch_size]
        ids = decode(model, model.encode(batch), config, keys=[query.key for query in batch], seed=seed)
        answers += model.decode_responses(ids)
        progress(len(batch))
    return answers
