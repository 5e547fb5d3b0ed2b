"""Hidden states of the response slots at the first denoising step, for every family with an output head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from disp.errors import DispError
from disp.models.interface import MDLM, Prefix


@contextmanager
def head_inputs(model: MDLM) -> Iterator[list[Tensor]]:
    """Within it, what goes into the model's output head is put on the list, once a pass.

    These are the normalised states of the last layer, float ``[B, R, d]``: a row for each response slot, and in
    families whose head predicts the next token one row more.

    Raises:
        DispError: the model has no module ``lm_head``, or its passes go round it.
    """
    head = getattr(model, "lm_head", None)
    if head is None:
        raise DispError(
            f"{type(model).__name__} has no output head called lm_head, which its hidden states would be read at; "
            "choose a defence that needs none"
        )
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        handle.remove()
    if not seen:
        raise DispError(
            f"{type(model).__name__} does not pass its hidden states through lm_head, where they would be read; "
            "choose a defence that needs none"
        )


@torch.no_grad()
def response_features(model: MDLM, prefix: Prefix) -> Tensor:
    """The mean hidden state of the response slots while all of them are masked, so that no answer leaks into it.

    Returns:
        float32 ``[B, d]`` on the CPU.

    Raises:
        DispError: the model does not show its hidden states; see `head_inputs`.
    """
    response = torch.full((len(prefix), model.slots_of_pass()), model.mask_token_id, device=prefix.embeds.device)
    with head_inputs(model) as seen:
        model.denoise(prefix, response)
    return seen[0].float().mean(1).cpu()
