"""The sampler "llada": fill the open slots block by block, most confident first (arXiv 2502.09992, section 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from disp.decoding.config import Decoded, StepConfig, check_parts
from disp.decoding.names import Remasking, Schedule
from disp.decoding.predictor import Predictor, all_sure, at_end, first_open
from disp.decoding.schedule import check_schedule, commit_schedule
from disp.draws import generator
from disp.errors import DispError, check_not_negative, unknown_name
from disp.models.interface import MDLM, Prefix
from disp.models.settings import check_whole


@dataclass(frozen=True)
class LladaConfig(StepConfig):
    """Options of the sampler "llada": those of `StepConfig`, and its own. ``steps`` are those of the whole response.

    Attributes:
        block_length: blocks decoded one after the other; None for one block of ``gen_length``.
        remasking: which predictions stay masked: those of least probability ("low_confidence"), of largest entropy, of
            least margin between the two likeliest tokens, or random ones.
        temperature: 0 for greedy; otherwise tokens are drawn with Gumbel noise scaled by it.
        threshold: also commit every predicted token of at least this probability, however slots are ordered, which
            ends early; None to switch off.
        cfg_scale: classifier-free guidance: logits ``u + (cfg_scale + 1) (c - u)``, u those of the prefix without its
            content (`MDLM.unconditional`); 0 to switch off.
        stop: texts or token sequences; what follows the earliest one is not decoded, and the answer ends before it.
        suffix: token ids that stand after the response while it is decoded, and at the end of the answer.
        schedule: how many tokens each step commits: None for ``gen_length / steps``; see
            `disp.decoding.schedule.commit_schedule`.
        schedule_shift: the shift of the "shift" schedule.
        prefix_cache: compute what the family caches of the prefix once (`MDLM.cache_prefix`). Whether that changes the
            answers is a property of the family.
        ban_mask: never predict the mask token. False reproduces published samplers token by token: a slot for which
            the mask is predicted stays open, and may stay so to the end.
    """

    sampler: str = field(default="llada", init=False)
    block_length: int | None = None
    remasking: Remasking = "low_confidence"
    temperature: float = 0.0
    threshold: float | None = None
    cfg_scale: float = 0.0
    stop: tuple[str | tuple[int, ...], ...] = ()
    suffix: tuple[int, ...] = ()
    schedule: Schedule | None = None
    schedule_shift: float = 3.0
    prefix_cache: bool = False
    ban_mask: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.stop, str):
            raise DispError(f"stop must be a list of texts or of token sequences, got the text {self.stop!r}")
        self._check_blocks()
        self.check_steps()
        check_schedule(self.schedule, self.schedule_shift)
        check_not_negative(self, "temperature", "cfg_scale")
        check_parts(self, "threshold")

    def _check_blocks(self) -> None:
        block = self.gen_length if self.block_length is None else self.block_length
        check_whole(block, "block_length")
        if self.gen_length % block:
            raise DispError(f"gen_length must be a multiple of block_length ({block}), got {self.gen_length}")
        blocks = self.gen_length // block
        if self.steps < blocks or self.steps % blocks:
            raise DispError(f"steps must be a multiple of the number of blocks ({blocks}), got {self.steps}")
        if self.schedule is not None and self.steps > self.gen_length:
            raise DispError(f"a schedule needs at most one step a slot, got {self.steps} for {self.gen_length} slots")
        if self.remasking not in get_args(Remasking):
            raise unknown_name("remasking", self.remasking, get_args(Remasking))

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return self.gen_length // (self.block_length or self.gen_length)

    def fewer_steps(self, times: int) -> dict[str, Any]:
        return {"steps": self.blocks * -(-(self.most_steps // self.blocks) // times)}

    def surer(self, threshold: float) -> dict[str, Any]:
        return {"threshold": threshold if self.threshold is None else min(threshold, self.threshold)}

    @property
    def most_steps(self) -> int:
        # A step without a slot left is not made.
        return self.blocks * min(self.steps // self.blocks, self.gen_length // self.blocks)

    @property
    def passes_a_step(self) -> int:
        return 2 if self.cfg_scale else 1

    @property
    def may_end_early(self) -> bool:
        return self.threshold is not None or bool(self.stop) or self.end_early or self.gap is not None

    @property
    def keeps_prefix(self) -> bool:
        return self.prefix_cache or self.keeps_prompt


def decode_llada(
    model: MDLM, prefix: Prefix, config: LladaConfig, *, keys: Sequence[str] | None = None, seed: int = 0
) -> Decoded:
    """Denoise a batch of responses from all masks.

    Args:
        model: the MDLM.
        prefix: prompts and visual tokens, B rows.
        config: the sampler's options.
        keys: one key a row for random draws; needed when ``remasking`` is random or ``temperature`` is not 0.
        seed: the run's seed.
    """
    random = config.temperature > 0 or config.remasking == "random"
    if random and keys is None:
        raise ValueError("random remasking and sampling need `keys`, one a row")
    batch, length, block = len(prefix), config.gen_length, config.gen_length // config.blocks
    steps = config.steps // config.blocks
    device = prefix.embeds.device
    stops = _stop_sequences(model, config.stop)
    predict = Predictor(
        model,
        prefix,
        prefix_cache=config.prefix_cache,
        ban_mask=config.ban_mask,
        cfg_scale=config.cfg_scale,
        suffix=config.suffix,
        keep=config.keeps_prompt,
    )
    response = torch.full((batch, length), model.mask_token_id, device=device)
    is_open = torch.ones_like(response, dtype=torch.bool)
    places = torch.arange(length, device=device)
    ends = torch.full((batch, 1), length, device=device)  # where each row's answer stops
    for first in range(0, length, block):
        in_block = (places >= first) & (places < first + block)
        quotas = commit_schedule(block, steps, config.schedule, config.schedule_shift)
        for step in range(steps):
            # 1. Rows that still have something to fill in this block; the others cost nothing.
            waiting = is_open & in_block & (places < ends)
            active = waiting.any(-1).nonzero()[:, 0]
            if not len(active):
                break
            waiting = waiting[active]
            slots = first_open(waiting, config.open_slots)  # [A, M]
            candidates = waiting.gather(-1, slots)
            logits = predict(response, active, slots if config.looks_closely else None, fresh=config.is_fresh(step))
            draws = (
                [generator(seed, "decode", keys[row], first + step) for row in active.tolist()]
                if random and keys
                else []
            )
            # 2. Predict every open slot.
            tokens, confidence, probability = _tokens(logits, config, draws, slots, length)
            confidence = confidence.masked_fill(~candidates, -torch.inf)
            # 3. Commit the most confident: this step's quota and, with a threshold, all that are likely enough.
            order = confidence.argsort(dim=-1, descending=True, stable=True)
            rank = order.argsort(dim=-1)
            if config.threshold is None:
                commit = candidates & (rank < quotas[step])
            else:
                # A row may be ahead of the schedule; the quota is of what the schedule still owes.
                owed = sum(quotas[: step + 1]) - (block - candidates.sum(-1, keepdim=True))
                commit = candidates & ((rank < owed.clamp(min=1)) | (probability >= config.threshold))
            if config.gap is not None:
                commit |= candidates & all_sure(logits, candidates, config.gap)
            # 4. Write them. A slot that was given the mask token (`ban_mask` off) is as open as before.
            written = torch.where(commit, tokens, response[active].gather(-1, slots))
            response[active] = response[active].scatter(-1, slots, written)
            still = is_open[active].gather(-1, slots) & ~(commit & (tokens != model.mask_token_id))
            is_open[active] = is_open[active].scatter(-1, slots, still)
            # 5. A stop sequence ends the answer, and nothing after an end token is read.
            if stops:
                found = [[_first_of(row, stops)] for row in response[active].tolist()]
                ends[active] = torch.minimum(ends[active], torch.tensor(found, device=device))
            if config.end_early:
                done = at_end(response, is_open, model.end_token_ids)
                response = torch.where(done & is_open, model.end_token_ids[-1], response)
                is_open &= ~done
    return _finish(model, response, ends, config.suffix)


def _tokens(
    logits: Tensor, config: LladaConfig, draws: list[np.random.Generator], slots: Tensor, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The predicted token of each slot, what orders the slots, and the token's probability; all ``[A, M]``.

    Random numbers are drawn for all ``length`` slots, so that which ones are looked at changes none.
    """
    probabilities = logits.double().softmax(-1)
    if config.temperature > 0:
        numbers = torch.from_numpy(np.stack([draw.random((length, logits.shape[-1])) for draw in draws]))
        uniforms = numbers.to(logits.device).gather(1, slots[..., None].expand_as(logits))
        gumbel = -torch.log(-torch.log(uniforms))
        tokens = (logits.double() + config.temperature * gumbel).argmax(-1)
    else:
        tokens = logits.argmax(-1)
    probability = probabilities.gather(-1, tokens[..., None])[..., 0]
    if config.remasking == "random":
        numbers = torch.from_numpy(np.stack([draw.random(length) for draw in draws]))
        confidence = numbers.to(logits.device).gather(-1, slots)
    elif config.remasking == "entropy":
        confidence = (probabilities * torch.log(probabilities + 1e-10)).sum(-1)
    elif config.remasking == "margin":
        likeliest = probabilities.topk(2, dim=-1).values
        confidence = likeliest[..., 0] - likeliest[..., 1]
    else:
        confidence = probability
    return tokens, confidence, probability


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
