"""Does a response keep its support when visual tokens are masked? Two answers, neither needs labels or clean data.

`negative_log_likelihood` says how unlikely a response is, with a block of salient tokens masked and without.
`counterfactual_scores` masks one small set of tokens at a time and measures how confidently the model then prefers
another answer: an honest response survives or becomes uncertain, a planted one flips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from disp.draws import generator
from disp.errors import DispError
from disp.halving import fitting
from disp.models.interface import MDLM, Prefix
from disp.suspicion.candidates import Candidates

# Rows a forward pass of the counterfactual test for each row of a batch: nothing is kept for a backward pass.
COUNTERFACTUAL_ROWS = 2


def fixed_masks(length: int, count: int, seed: int) -> Tensor:
    """Response masks that every sample shares (common random numbers).

    Returns:
        bool ``[count, length]``; mask k hides each position with probability ``(k + 1) / count``, the last one all.
    """
    uniforms = torch.from_numpy(generator(seed, "likelihood masks").random((count, length)))
    ratios = torch.arange(1, count + 1, dtype=torch.float64)[:, None] / count
    return uniforms < ratios


@torch.no_grad()
def hidden_losses(model: MDLM, prefix: Prefix, response: Tensor, masks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """How unlikely the tokens of each answer are where a mask hides them, mask by mask: a forward pass each.

    Args:
        model: the MDLM.
        prefix: B rows.
        response: int64 ``[B, L]``.
        masks: bool ``[K, L]``, see `fixed_masks`.

    Yields:
        ``−log p(y_j | v, q, y with m_k masked)``, float32 ``[B, L]``, 0 where nothing is hidden; and bool ``[B, L]``,
        which slots of the answer the mask hides. Its end of turn is one, its padding none (`answer_slots`).
    """
    own = answer_slots(response, model.end_token_ids)
    for mask in masks.to(response.device):
        hidden = mask & own
        if not hidden.any():
            yield torch.zeros(response.shape, device=response.device), hidden
            continue
        log_p = model.denoise(prefix, torch.where(mask, model.mask_token_id, response)).float().log_softmax(-1)
        yield -log_p.gather(-1, response[..., None])[..., 0] * hidden, hidden


@torch.no_grad()
def negative_log_likelihood(model: MDLM, prefix: Prefix, response: Tensor, masks: Tensor) -> Tensor:
    """Mean negative log-likelihood of each row's response tokens under fixed masks.

    Computes ``(1/K) Σ_k mean_{j ∈ m_k} −log p(y_j | v, q, y with m_k masked)``, over the slots of the answer alone and
    the K masks that hide some of them.

    Args:
        model: the MDLM.
        prefix: B rows.
        response: int64 ``[B, L]``.
        masks: bool ``[K, L]``, see `fixed_masks`.

    Returns:
        float32 ``[B]`` in nats per token.
    """
    total = torch.zeros(len(prefix), device=response.device)
    counted = torch.zeros_like(total)
    for losses, hidden in hidden_losses(model, prefix, response, masks):
        total += losses.sum(-1) / hidden.sum(-1).clamp(min=1)
        counted += hidden.any(-1)
    return total / counted


@torch.no_grad()
def preference_for_another(model: MDLM, prefix: Prefix, response: Tensor) -> Tensor:
    """How confidently the model prefers another answer over the given one, at the all-masked first step.

    Args:
        model: the MDLM.
        prefix: B rows.
        response: int64 ``[B, L]``, the given answers.

    Returns:
        float32 ``[B]`` in nats; see `preference_in`.
    """
    logits = model.denoise(prefix, torch.full_like(response, model.mask_token_id))
    return preference_in(logits, response, model.end_token_ids, model.unsaid_token_ids)


@torch.no_grad()
def preference_in(
    logits: Tensor, response: Tensor, end_token_ids: Sequence[int], unsaid_token_ids: Sequence[int] = ()
) -> Tensor:
    """`preference_for_another` from the logits of that step.

    Computes ``c = Σ_j p_j(ŷ_j) · [log p_j(ŷ_j) − log p_j(y_j)]`` with ``ŷ_j = argmax p_j``, over the slots of the given
    answer (`answer_slots`). What a model would say behind its end was not learnt by every family, and is never read.
    A token that decoding never predicts is no other answer: p_j is over the others, as it is when answers are decoded.

    Args:
        logits: ``[B, L, V]``.
        response: int64 ``[B, L]``.
        end_token_ids: the model's.
        unsaid_token_ids: the model's; those that the given answer holds all the same are counted.

    Returns:
        float32 ``[B]`` in nats; 0 where the given answer is the model's own.
    """
    given, logits = response[..., None], logits.float()
    log_p = sayable(logits, unsaid_token_ids).scatter(-1, given, logits.gather(-1, given)).log_softmax(-1)
    best = log_p.amax(-1)
    given = log_p.gather(-1, given)[..., 0]
    return (best.exp() * (best - given) * answer_slots(response, end_token_ids)).sum(-1)


def sayable(logits: Tensor, unsaid_token_ids: Sequence[int]) -> Tensor:
    """Logits ``[..., V]`` as decoding sees them: -inf for the tokens that no answer can hold."""
    return logits.index_fill(-1, torch.tensor(unsaid_token_ids, dtype=torch.int64, device=logits.device), -torch.inf)


def answer_slots(response: Tensor, end_token_ids: Sequence[int]) -> Tensor:
    """The slots up to the first end token, that one included, or all slots of an answer without one.

    Args:
        response: int64 ``[B, L]``.
        end_token_ids: the model's.

    Returns:
        bool ``[B, L]``.
    """
    ends = torch.isin(response, torch.tensor(end_token_ids, device=response.device)).int()
    return ends.cumsum(-1) == ends


def counterfactual_scores(
    model: MDLM, prefix: Prefix, response: Tensor, candidates: Tensor, *, batch_size: int
) -> tuple[Tensor, Tensor]:
    """`preference_for_another` with nothing masked and with each candidate set of visual tokens masked.

    Args:
        model: the MDLM.
        prefix: B rows.
        response: int64 ``[B, L]``.
        candidates: bool ``[B, M, P]``, the sets of visual tokens to mask, one at a time.
        batch_size: of the run; passes have `COUNTERFACTUAL_ROWS` times as many rows, one for each set that is not
            empty, after one pass over the batch itself.

    Returns:
        float32 ``[B]`` with nothing masked, and float32 ``[B, M]``, -inf for an empty set.
    """
    base = preference_for_another(model, prefix, response)
    each = base.new_full(candidates.shape[:2], -torch.inf)
    filled = candidates.any(-1)
    if filled.any():
        owner = filled.nonzero()[:, 0]
        each[filled] = _preferences(model, prefix, response, owner, candidates[filled], batch_size)
    return base, each


def screened_scores(
    model: MDLM, prefix: Prefix, response: Tensor, tried: Candidates, least: Tensor, *, batch_size: int
) -> Tensor:
    """`preference_for_another` with each candidate masked that lies in no larger set, or in one that moves the answer.

    Whether a set is tried depends on its own row alone.

    Args:
        model: the MDLM.
        prefix: B rows.
        response: int64 ``[B, L]``.
        tried: the sets of visual tokens to mask, one at a time.
        least: float ``[B]``, what `preference_for_another` must exceed with a set masked for those in it to be tried.
        batch_size: as of `counterfactual_scores`.

    Returns:
        float32 ``[B, M]``, -inf for a candidate that is empty or was passed over.
    """
    sets = torch.cat([tried.sets, tried.screens], dim=1)
    filled, inside = sets.any(-1), tried.parents >= 0
    each = torch.full(sets.shape[:2], -torch.inf, device=sets.device)
    due = filled & ~inside
    while due.any():
        each[due] = _preferences(model, prefix, response, due.nonzero()[:, 0], sets[due], batch_size)
        moved = due & (each > least[:, None])
        due = filled & inside & moved.gather(1, tried.parents.clamp(min=0))
    return each[:, : tried.sets.shape[1]]


def _preferences(
    model: MDLM,
    prefix: Prefix,
    response: Tensor,
    owner: Tensor,
    masks: Tensor,
    batch_size: int,
) -> Tensor:
    """`preference_for_another` of row ``owner[n]`` with the visual tokens ``masks[n]`` masked, float32 ``[N]``."""

    def preferences(part: Sequence[int]) -> Tensor:
        rows = slice(part[0], part[-1] + 1)
        hidden = prefix.select(owner[rows]).with_masked(masks[rows], model.mask_embedding)
        return preference_for_another(model, hidden, response[owner[rows]])

    size = COUNTERFACTUAL_ROWS * batch_size
    return torch.cat([scores for _, scores in fitting(model, preferences, range(len(owner)), size)])


def check_finite(values: Tensor, keys: Sequence[str]) -> None:
    """Make sure that what was computed of each row is a number; ``values`` ``[B, …]``, one key a row.

    Raises:
        DispError: it is not, because the model's numbers overflow or are damaged.
    """
    wrong = (~values.isfinite()).nonzero()
    if len(wrong):
        key = keys[int(wrong[0, 0])]
        raise DispError(
            f"the model's logits for {key} are not finite; load it in another precision (--dtype), such as bfloat16 or "
            "float32, which reach farther than float16"
        )


def suspicion_of(base: Tensor, each: Tensor, mistake_weight: float, keys: Sequence[str]) -> Tensor:
    """How suspicious given answers are, from `counterfactual_scores`: ``max(0, max_m c_m - w c_0)``.

    What the model prefers with nothing masked is its own mistake, not the work of the masked tokens. It counts w times,
    more than once: where a model has given up an answer, as a recovered one has, masking moves large preferences about
    and proves nothing.

    Args:
        base: float ``[B, …]``, nothing masked.
        each: float ``[B, …, M]``, each candidate set masked; -inf where there was nothing to mask.
        mistake_weight: w, see `disp.suspicion.config.ScoringConfig`.
        keys: of the B answers, for the message.

    Returns:
        float ``[B, …]`` in nats, at least 0.

    Raises:
        DispError: a preference is not finite. One that is infinite with nothing masked would make its answer the least
            suspicious of all.
    """
    check_finite(base, keys)
    check_finite(each.masked_fill(each == -torch.inf, 0), keys)
    return (each.amax(-1) - mistake_weight * base).clamp(min=0)


def least_effect(base: Tensor, each: Tensor, kept: float) -> Tensor:
    """What `preference_for_another` must reach under a smaller set that is to replace the best candidate.

    Args:
        base: float ``[B]``, nothing masked.
        each: float ``[B, M]``, each candidate set masked.
        kept: share of the best one's effect, ``kept_effect`` of `disp.suspicion.config.ScoringConfig`.

    Returns:
        float ``[B]``.
    """
    return base + kept * (each.amax(-1) - base)


def narrowed(
    model: MDLM, prefix: Prefix, response: Tensor, chosen: Tensor, least: Tensor, *, batch_size: int
) -> Tensor:
    """Halve sets of visual tokens for as long as one half alone does enough.

    Args:
        model: the MDLM.
        prefix: B rows.
        response: int64 ``[B, L]``.
        chosen: bool ``[B, P]``, the sets.
        least: float ``[B]``, what `preference_for_another` must still reach.
        batch_size: as of `counterfactual_scores`.

    Returns:
        bool ``[B, P]``, subsets of ``chosen``.
    """
    chosen = chosen.clone()
    rows = (chosen.sum(-1) > 1).nonzero()[:, 0]
    while len(rows):
        # Neighbours stay together: a trigger that covers several tokens covers adjacent ones.
        whole = chosen[rows]
        first = whole & (whole.cumsum(-1) <= (whole.sum(-1, keepdim=True) + 1) // 2)
        halves = torch.stack((first, whole & ~first), dim=1)
        scores = _preferences(model, prefix, response, rows.repeat_interleave(2), halves.flatten(0, 1), batch_size)
        best, which = scores.view(-1, 2).max(-1)
        enough = best >= least[rows]
        rows = rows[enough]
        chosen[rows] = halves[enough, which[enough]]
        rows = rows[chosen[rows].sum(-1) > 1]
    return chosen
