"""How much each visual token steers the first denoising step: Fisher-Jacobian saliency.

Perturbing visual token i by δ changes the predicted distributions by ``½ δᵀ G_i δ`` nats (KL, to second order), where

    G_i = Σ_j J_ijᵀ F_j J_ij,    J_ij = ∂z_j/∂v_i,    F_j = diag(p_j) − p_j p_jᵀ

is the pull-back of the softmax's Fisher information from the logits z_j of the L response positions. The idea of
ranking visual tokens so is from Wan et al., "Self-Purification Mitigates Backdoors in Multimodal Diffusion Language
Models", arXiv 2602.22246. No Jacobian is formed: with ``F_j = S_j S_jᵀ`` and random signs ζ, one vector-Jacobian
product ``u_i = Σ_j J_ijᵀ S_j ζ_j`` serves all tokens, and ``E‖u_i‖² = tr G_i``, ``E(dᵀu_i)² = dᵀ G_i d``
(Hutchinson 1990).

The published code computes a variant of it, which the options of `SaliencyConfig` set one by one and
`SaliencyConfig.published` all at once: Gaussian probes, the softmax over the K largest logits of each slot, the slots
of the first block only, newline vectors ranked like visual tokens, and the cotangent kept in the graph: the product is
then ``Jᵀ (q + (∂q/∂z)ᵀ z)`` with ``q = S ζ``, which is not the formula of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from disp.models.interface import MDLM, Prefix
from disp.suspicion.config import SaliencyConfig
from disp.suspicion.probes import DRAWS
from disp.suspicion.support import answer_slots, sayable


def saliency(
    model: MDLM,
    prefix: Prefix,
    keys: Sequence[str],
    config: SaliencyConfig,
    gen_length: int | None = None,
    *,
    block_length: int | None = None,
    probes: Tensor | None = None,
) -> Tensor:
    """Score every visual token of a batch; one forward pass and K backward passes through activations only.

    Args:
        model: the MDLM; its weights, gradients and flags are left as they are.
        prefix: B rows. Rows do not influence each other.
        keys: one key a row; the probes are keyed by it.
        config: see `SaliencyConfig`.
        gen_length: response slots, all of them masked; None for ``model.gen_length``. Those of the first step count,
            see `MDLM.slots_of_pass`.
        block_length: slots of the first block; None for one block of all slots.
        probes: draws to use instead of the configured ones, float ``[K, B, G, V]`` for G slots, or with
            ``top_logits`` one draw for each of them instead of V, largest logit first.

    Returns:
        float32 ``[B, P]``: the score at visual tokens (and separators, if they are scored), 0 elsewhere.
    """
    if len(keys) != len(prefix):
        raise ValueError(f"saliency needs one key a row, got {len(keys)} keys for {len(prefix)} rows")
    # 1. The first denoising step, differentiable in the prefix's embeddings alone.
    embeds, logits = first_step(model, prefix, gen_length or model.gen_length)
    return saliency_of_step(model, prefix, keys, config, embeds, logits, block_length=block_length, probes=probes)


def saliency_of_step(
    model: MDLM,
    prefix: Prefix,
    keys: Sequence[str],
    config: SaliencyConfig,
    embeds: Tensor,
    logits: Tensor,
    *,
    block_length: int | None = None,
    probes: Tensor | None = None,
) -> Tensor:
    """`saliency` from a first step that was taken before, whose graph it frees.

    Args:
        model: the MDLM.
        prefix: B rows.
        keys: one key a row.
        config: see `SaliencyConfig`.
        embeds: ``[B, P, d]``, see `first_step`.
        logits: ``[B, L, V]``.
        block_length: as of `saliency`.
        probes: as of `saliency`.

    Returns:
        float32 ``[B, P]``.
    """
    # The logits that count.
    counted = None
    if config.slots == "first block":
        logits = logits[:, : block_length or logits.shape[1]]
    elif config.slots == "answer":
        own = sayable(logits.detach(), model.unsaid_token_ids).argmax(-1)  # what decoding would say there
        counted = answer_slots(own, model.end_token_ids)[..., None]
    if config.top_logits is not None:
        largest = logits.detach().topk(min(config.top_logits, logits.shape[-1]), dim=-1).indices
        logits = logits.gather(-1, largest)  # [B, G, K]: no probe of the whole vocabulary is formed
    direction = (prefix.substitutes(model.mask_embedding.detach()) - embeds.detach()).to(logits.dtype)  # [B, P, d]
    total = embeds.new_zeros(embeds.shape[:2], dtype=torch.promote_types(embeds.dtype, torch.float32))
    # 2. One vector-Jacobian product a probe, squared.
    _, slots, vocab = logits.shape
    count = config.probes if probes is None else len(probes)

    def probe_of(index: int) -> Tensor:
        if probes is not None:
            probe = probes[index].to(logits.device)
        else:
            probe = DRAWS[config.draw](config.seed, keys, index, slots, vocab, logits.device)
        # A slot whose probe is 0 has a cotangent of 0.
        return probe if counted is None else probe * counted

    for product in vector_jacobian_products(embeds, logits, probe_of, count, in_graph=config.in_graph):
        product = product.to(total.dtype)
        if config.score == "isotropic":
            total += product.square().sum(-1)
        else:
            total += (product * direction).sum(-1).square() / 2
    # 3. The mean over probes.
    return (total / count).masked_fill(~prefix.scored(config.separators), 0).float()


def first_step(model: MDLM, prefix: Prefix, length: int) -> tuple[Tensor, Tensor]:
    """The first denoising step: every response slot masked.

    Args:
        model: the MDLM.
        prefix: B rows.
        length: response slots; L of them are of this step, see `MDLM.slots_of_pass`.

    Returns:
        The prefix's embeddings ``[B, P, d]`` as a leaf that requires a gradient, and logits ``[B, L, V]`` whose graph
        leads to that leaf and to no weight. It works where the caller has switched gradients off.
    """
    with torch.enable_grad(), frozen(model):
        embeds = prefix.embeds.detach().clone().requires_grad_()
        slots = model.slots_of_pass(length)
        response = torch.full((len(prefix), slots), model.mask_token_id, device=embeds.device)
        return embeds, model.denoise(replace(prefix, embeds=embeds), response)


def vector_jacobian_products(
    embeds: Tensor, logits: Tensor, probe_of: Callable[[int], Tensor], count: int, *, in_graph: bool = False
) -> Iterator[Tensor]:
    """``u_i = Σ_j J_ijᵀ S_j ζ_j`` for each probe, all from one graph, which the last one frees.

    Args:
        embeds: ``[B, P, d]``, see `first_step`.
        logits: ``[B, L, V]``.
        probe_of: the probe of each index below ``count``, ``[B, L, V]``.
        count: how many.
        in_graph: see `SaliencyConfig`.

    Yields:
        ``[B, P, d]`` in the dtype of ``embeds``.
    """
    values = logits.detach()
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    probabilities = values.softmax(-1)
    for index in range(count):
        probe = probe_of(index).to(values.dtype)
        cotangent = graph_cotangent(values, probe) if in_graph else factor_product(probabilities, probe)
        (product,) = torch.autograd.grad(logits, embeds, cotangent.to(logits.dtype), retain_graph=index + 1 < count)
        yield product


def graph_cotangent(logits: Tensor, probe: Tensor) -> Tensor:
    """``∂⟨q, z⟩/∂z = q + (∂q/∂z)ᵀ z`` with ``q = S ζ``, the published code's cotangent; all ``[..., V]``."""
    with torch.enable_grad():
        values = logits.detach().requires_grad_()
        product = (factor_product(values.softmax(-1), probe) * values).sum()
        (cotangent,) = torch.autograd.grad(product, values)
    return cotangent


def factor_product(probabilities: Tensor, probe: Tensor) -> Tensor:
    """``S ζ = √p ⊙ ζ − p (√pᵀ ζ)``, where ``S Sᵀ = diag(p) − p pᵀ``; all ``[..., V]``, no V×V matrix."""
    weighted = probabilities.sqrt() * probe
    return weighted - probabilities * weighted.sum(-1, keepdim=True)


@contextmanager
def frozen(model: MDLM) -> Iterator[None]:
    """Within it no weight requires a gradient; afterwards, also after an error, each flag is as it was.

    A graph without weights keeps less for the backward pass and forms no weight gradients: nearly half its cost.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def rank_tokens(scores: Tensor, visual_mask: Tensor) -> Tensor:
    """Positions of the visual tokens, highest score first.

    Args:
        scores: float ``[B, P]``.
        visual_mask: bool ``[B, P]``.

    Returns:
        int64 ``[B, N]`` with N the most visual tokens of a row; ties in order of position; shorter rows end in -1.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    # Whatever stands at other positions, they come after every visual token.
    visual_first = visual_mask.gather(-1, order).int().argsort(dim=-1, descending=True, stable=True)
    counts = visual_mask.sum(-1, keepdim=True)
    width = int(counts.max()) if len(counts) else 0
    order = order.gather(-1, visual_first)[:, :width]
    return order.masked_fill(torch.arange(width, device=scores.device) >= counts, -1)
