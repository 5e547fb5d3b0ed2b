"""The plain loop that speed is measured against: decoding and saliency in the manner of published code.

One row at a time; every step is a pass over the whole sequence; every layer and the head compute all positions; logits
are copied to float64 for a softmax over all positions. Saliency makes a forward pass for each probe and forms the
gradients of the weights, which nobody reads. The results are those of `disp.decoding` and `disp.suspicion`. One thing
is as it is here and not as published: only slots of the response are ever filled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from disp.decoding.schedule import commit_quotas
from disp.models.builtin.model import BuiltinModel
from disp.models.interface import Prefix
from disp.models.parts.transformer import attention_inputs
from disp.suspicion.probes import signs
from disp.suspicion.saliency import factor_product


def whole_pass(model: BuiltinModel, embeds: Tensor) -> Tensor:
    """Logits ``[1, T, V]`` of all positions of an embedded sequence ``[1, T, d]``."""
    language, length = model.model, embeds.shape[1]
    there = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    table, mask = attention_inputs(there, language.head_dim, language.rope_theta)
    for layer in language.layers:
        embeds = layer(embeds, table, mask, length)
    return model.lm_head(language.norm(embeds))


@torch.no_grad()
def reference_decode(model: BuiltinModel, prefix: Prefix, length: int, steps: int) -> Tensor:
    """Greedy tokens int64 ``[1, L]``: in each step the surest predictions are committed, equally many a step.

    Args:
        model: the model.
        prefix: one row without padding.
        length: response slots L.
        steps: denoising steps.
    """
    prompt = prefix.embeds.shape[1]
    mask = model.mask_embedding.expand(1, length, -1)
    canvas = torch.cat((prefix.embeds, mask), dim=1)
    tokens = torch.full((1, prompt + length), model.mask_token_id, device=canvas.device)
    is_open = torch.arange(prompt + length, device=canvas.device)[None] >= prompt
    banned = sorted({model.mask_token_id, *model.banned_token_ids})
    for quota in commit_quotas(length, steps):
        logits = whole_pass(model, canvas).float()
        logits[..., banned] = -torch.inf
        best = logits.argmax(-1)
        probabilities = logits.double().softmax(-1)
        confidence = probabilities.gather(-1, best[..., None])[..., 0].masked_fill(~is_open, -torch.inf)
        chosen = confidence[0].argsort(descending=True, stable=True)[:quota]
        tokens[0, chosen] = best[0, chosen]
        is_open[0, chosen] = False
        canvas[0, chosen] = model.model.embed_tokens(best[0, chosen])
    return tokens[:, prompt:]


def reference_saliency(
    model: BuiltinModel, prefix: Prefix, keys: Sequence[str], length: int, probes: int, seed: int = 0
) -> Tensor:
    """The isotropic score, float32 ``[1, P]``, of `disp.suspicion.saliency.saliency`; one pass a probe."""
    prompt = prefix.embeds.shape[1]
    total = torch.zeros(prefix.embeds.shape[:2], device=prefix.embeds.device)
    weights = [*model.model.layers.parameters(), *model.lm_head.parameters()]
    for probe in range(probes):
        embeds = prefix.embeds.detach().clone().requires_grad_()
        canvas = torch.cat((embeds, model.mask_embedding.detach().expand(1, length, -1)), dim=1)
        logits = whole_pass(model, canvas)[:, prompt:]
        draw = signs(seed, keys, probe, length, logits.shape[-1], logits.device)
        cotangent = factor_product(logits.detach().float().softmax(-1), draw).to(logits.dtype)
        product, *_ = torch.autograd.grad(logits, [embeds, *weights], cotangent, allow_unused=True)
        total += product.float().square().sum(-1)
    return (total / probes).masked_fill(~prefix.visual_mask, 0)
