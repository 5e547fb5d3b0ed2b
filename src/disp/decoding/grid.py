"""What the samplers "dream" and "dim" share, for models that grew out of Qwen2.5: the walk down a time grid.

Both walk down the grid 1 = t_0 > t_1 > ... > t_S = 0.001, where t is the part of the response that is still masked, and
differ in which slots they fill at a step. Neither ever masks a slot again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from disp.decoding.config import Decoded, StepConfig, check_parts
from disp.decoding.names import Schedule
from disp.decoding.predictor import Predictor, all_sure, at_end, first_open
from disp.decoding.schedule import check_schedule, commit_schedule
from disp.draws import generator
from disp.errors import DispError, check_not_negative, unknown_name
from disp.models.interface import MDLM, Prefix

# They choose slots at random; "autoregressive" chooses from the left, the others by confidence.
RANDOM_ALGORITHMS = ("origin", "origin-ratio")
LAST_TIME = 1e-3


@dataclass(frozen=True)
class GridConfig(StepConfig):
    """Options of both samplers: those of `StepConfig`, and these. ``steps`` is the S of the time grid.

    Attributes:
        temperature: 0 for greedy; otherwise tokens are drawn from the logits divided by it.
        algorithm: which slots are filled first; one of the sampler's ``algorithms``.
        algorithm_temperature: noise in that choice; 0 for none.
        top_k: draw among this many tokens; None for all.
        top_p: draw among the likeliest tokens of this total probability; None for all.
        schedule: how many tokens each step commits, in place of the grid's share; see
            `disp.decoding.schedule.commit_schedule`.
        schedule_shift: the shift of the "shift" schedule.
        prefix_cache: compute what the family caches of the prefix once (`MDLM.cache_prefix`). Whether that changes the
            answers is a property of the family.
        ban_mask: never predict the mask token. False reproduces published samplers token by token: a slot for which
            the mask is predicted stays open, and may stay so to the end.
        original_confidence: take the confidence from the model's own distribution, not from the tempered and cut one
            that tokens are drawn from. None for what is published: "dim" does and "dream" does not.
    """

    algorithms: ClassVar[tuple[str, ...]]

    temperature: float = 0.0
    algorithm: str = "origin"
    algorithm_temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    schedule: Schedule | None = None
    schedule_shift: float = 3.0
    prefix_cache: bool = False
    ban_mask: bool = True
    original_confidence: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_steps()
        check_schedule(self.schedule, self.schedule_shift)
        check_not_negative(self, "temperature", "algorithm_temperature")
        check_parts(self, "top_p")
        if self.top_k is not None and self.top_k < 1:
            raise DispError(f"top_k must be at least 1, got {self.top_k}")
        if self.algorithm not in self.algorithms:
            raise unknown_name(f"algorithm of the sampler {self.sampler!r}", self.algorithm, self.algorithms)

    @property
    def draws_anything(self) -> bool:
        """Whether any random number is drawn."""
        return self.temperature > 0 or self.algorithm in RANDOM_ALGORITHMS or self.algorithm_temperature > 0

    @property
    def uses_original_confidence(self) -> bool:
        """`original_confidence`, or what is published."""
        return self.sampler == "dim" if self.original_confidence is None else self.original_confidence

    @property
    def keeps_prefix(self) -> bool:
        return self.prefix_cache or self.keeps_prompt


@dataclass(frozen=True)
class Step:
    """Where a row is.

    Attributes:
        index: of this step.
        steps: how many are run.
        total: slots of the row that were open at first.
        grid: as `time_grid` returns it.
        quota: what a schedule prescribes, in place of the grid's share.
    """

    index: int
    steps: int
    total: int
    grid: np.ndarray
    quota: int | None

    @property
    def is_last(self) -> bool:
        """Whether no step follows."""
        return self.index == self.steps - 1

    def number(self, open_slots: int, share: np.float32, config: GridConfig) -> int:
        """How many of the open slots are committed."""
        if self.is_last and (self.quota is None or config.ban_mask):
            return open_slots
        return int(np.float32(open_slots) * share) if self.quota is None else min(self.quota, open_slots)


# From the confidence in the open slots of one row, left to right (float ``[M]``), uniform numbers (float64 ``[M]``, or
# None where nothing is drawn), the config and the step: indices of the slots that this step commits.
Choose = Callable[[Tensor, Tensor | None, Any, Step], Tensor]


def decode_on_grid(
    model: MDLM,
    prefix: Prefix,
    config: GridConfig,
    choose: Choose,
    *,
    keys: Sequence[str] | None = None,
    seed: int = 0,
) -> Decoded:
    """Denoise a batch of responses with the sampler "dream" or "dim".

    Rows are independent: each has its own quotas, and its random draws are keyed by row and step. Published code counts
    the open slots of all rows together instead, so it decodes batches of one; the two agree there.

    Where the family predicts slot 0 from the prefix alone (`Predictor.first_logits`), it is committed before the first
    step and is none of the slots that the steps share.

    Args:
        model: the MDLM; ``denoise`` aligns its logits.
        prefix: prompts and visual tokens, B rows.
        config: the sampler's options.
        choose: the sampler's choice of slots.
        keys: one key a row; needed where anything is drawn.
        seed: the run's seed.

    Returns:
        int64 ``[B, L]``. With ``ban_mask`` every slot is filled; without it a slot for which the mask token was
        predicted stays as it is, and "autoregressive" fills exactly one slot a step, as published.
    """
    if keys is None and config.draws_anything:
        raise ValueError(f"sampling and the algorithm {config.algorithm!r} need `keys`, one a row")
    predict = Predictor(
        model, prefix, prefix_cache=config.prefix_cache, ban_mask=config.ban_mask, keep=config.keeps_prompt
    )
    response = torch.full((len(prefix), config.gen_length), model.mask_token_id, device=prefix.embeds.device)
    is_open = torch.ones_like(response, dtype=torch.bool)
    if predict.first_logits is not None:
        response[:, 0] = predict.first_logits.argmax(-1)
        is_open[:, 0] = False
    steps, total = config.most_steps, int(is_open[0].sum())
    counts = None
    if config.schedule is not None and total:
        steps = min(steps, total)
        counts = commit_schedule(total, steps, config.schedule, config.schedule_shift)
    grid = time_grid(config.steps)
    for index in range(steps):
        active = is_open.any(-1).nonzero()[:, 0]
        if not len(active):
            break
        step = Step(index, steps, total, grid, None if counts is None else counts[index])
        looked_at = first_open(is_open[active], config.open_slots)
        logits = predict(
            response, active, looked_at if config.looks_closely else None, fresh=config.is_fresh(index)
        )  # [A, M, V]
        sure = None if config.gap is None else all_sure(logits, is_open[active].gather(-1, looked_at), config.gap)
        for place, row in enumerate(active.tolist()):
            slots = is_open[row].nonzero()[:, 0]
            # The open slots come first, if not all slots are looked at.
            seen = logits[place, : len(slots)] if config.open_slots else logits[place, slots]
            uniforms: Tensor | None = None
            if keys is not None and config.draws_anything:
                # By slot, so that which slots are open changes nothing for the others.
                numbers = generator(seed, "decode", keys[row], index).random((2, config.gen_length))
                uniforms = torch.from_numpy(numbers).to(slots.device)[:, slots]
            for_tokens, for_slots = (None, None) if uniforms is None else uniforms
            tokens, confidence = predict_tokens(seen, config, for_tokens)
            chosen = choose(confidence, for_slots, config, step)
            if sure is not None and sure[place]:
                chosen = torch.arange(len(slots), device=slots.device)
            response[row, slots[chosen]] = tokens[chosen]
            is_open[row, slots[chosen]] = tokens[chosen] == model.mask_token_id
        if config.end_early:
            done = at_end(response, is_open, model.end_token_ids)
            response = torch.where(done & is_open, model.end_token_ids[-1], response)
            is_open &= ~done
    return Decoded.whole(response)


def time_grid(steps: int) -> np.ndarray:
    """float32 ``[S + 1]``, from 1 to 0.001. Quotas are rounded down, so they depend on its last bits."""
    return torch.linspace(1, LAST_TIME, steps + 1, dtype=torch.float32).numpy()


def from_the_left(confidence: Tensor, config: GridConfig, step: Step) -> Tensor:
    """The algorithm "autoregressive" of both samplers: the first open slots; a `Choose`.

    Args:
        confidence: float ``[M]``, of the open slots; only their number counts.
        config: of the sampler.
        step: which step of how many it is.

    Returns:
        int64, indices of open slots, from 0.
    """
    count = len(confidence)
    # Published code takes one a step even where the steps do not reach the end.
    number = -(-count // (step.steps - step.index)) if config.ban_mask else 1
    return torch.arange(min(number, count), device=confidence.device)


def surest(confidence: Tensor, number: int, uniforms: Tensor | None, config: GridConfig) -> Tensor:
    """The slots of most confidence, with noise in it where the config asks for that.

    Args:
        confidence: float ``[M]``, of the open slots.
        number: how many are wanted.
        uniforms: float64 ``[M]`` in (0, 1), for the noise; None where nothing is drawn.
        config: of the sampler.

    Returns:
        int64 ``[number]``, indices of open slots, the surest first.
    """
    if config.algorithm_temperature > 0 and uniforms is not None:
        # The largest of confidence / T + Gumbel noise are a draw without replacement from softmax(confidence / T).
        confidence = confidence.double() / config.algorithm_temperature - torch.log(-torch.log(uniforms))
    return confidence.argsort(descending=True, stable=True)[:number]


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


def predict_tokens(logits: Tensor, config: GridConfig, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
    """The predicted token of each open slot and the confidence in it.

    Args:
        logits: float ``[M, V]``.
        config: its temperature, cuts and algorithm.
        uniforms: float64 ``[M]`` in [0, 1), used where the temperature is not 0.

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
    if config.uses_original_confidence:
        probabilities = logits.softmax(-1)
    if config.algorithm == "topk_margin":
        likeliest = probabilities.topk(2, dim=-1).values
        return tokens, likeliest[:, 0] - likeliest[:, 1]
    if config.algorithm == "entropy":
        return tokens, (probabilities * torch.log(probabilities + 1e-10)).sum(-1)
    return tokens, probabilities.gather(-1, tokens[:, None])[:, 0]
