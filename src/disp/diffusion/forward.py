"""The forward process of masked diffusion and its training loss (METHOD: LLaDA, arXiv 2502.09992, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from disp.draws import generator

# 1/t is unbounded; LLaDA's own floor.
MIN_RATIO = 1e-3


@dataclass(frozen=True)
class Noised:
    """A response after the forward process.

    Attributes:
        ids: int64 ``[B, L]``, the mask id at masked positions.
        masked: bool ``[B, L]``.
        ratio: float32 ``[B]``, the probability t with which each token of the row was masked.
    """

    ids: Tensor
    masked: Tensor
    ratio: Tensor


def draw_noise(seed: int, key: str, draw: int, length: int, min_ratio: float = MIN_RATIO) -> tuple[float, Tensor]:
    """The random numbers of one Monte-Carlo draw for one sample.

    Args:
        seed: the run's seed.
        key: the query's key.
        draw: how often this query has been noised before (the epoch).
        length: L.
        min_ratio: lower end of t. The loss weighs tokens by 1/t, so a small one means a large variance.

    Returns:
        t uniform in ``[min_ratio, 1]`` and uniforms float32 ``[L]``; token j is masked where ``uniforms[j] < t``.
    """
    numbers = generator(seed, "noise", key, draw).random(length + 1)
    return min_ratio + (1 - min_ratio) * float(numbers[0]), torch.from_numpy(numbers[1:]).float()


def add_noise(response: Tensor, ratio: Tensor, uniforms: Tensor, mask_token_id: int) -> Noised:
    """Mask each token of a response with its row's probability.

    Args:
        response: int64 ``[B, L]``.
        ratio: float ``[B]`` in (0, 1].
        uniforms: float ``[B, L]`` in [0, 1).
        mask_token_id: id written at masked positions.
    """
    masked = uniforms < ratio[:, None]
    return Noised(torch.where(masked, mask_token_id, response), masked, ratio)


def diffusion_loss(logits: Tensor, response: Tensor, noised: Noised) -> Tensor:
    """The 1/t-weighted cross-entropy of masked tokens, a bound on the negative log-likelihood per token.

    Computes ``(1/L) Σ_{j masked} (1/t) · −log p(y_j | v, q, y^t)``, averaged over the batch.

    Args:
        logits: ``[B, L, V]`` for the noised response.
        response: int64 ``[B, L]``, the clean tokens.
        noised: what the model saw.

    Returns:
        A scalar.
    """
    losses = F.cross_entropy(logits.float().transpose(1, 2), response, reduction="none")  # [B, L]
    weights = noised.masked / noised.ratio[:, None]
    return (losses * weights).sum() / response.numel()
