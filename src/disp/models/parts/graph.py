"""Parameters that a pass does not use, in its graph all the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, *parameters: Tensor) -> Tensor:
        ctx.kinds = [(each.shape, each.dtype, each.device) for each in parameters]
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        # Not the product of 0 and what arrives, which may have overflowed.
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.kinds)
        return (*gradients, *zeros)


def joined(tensor: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The same tensor, with a gradient of zero for each of the parameters.

    What follows is then computed backwards as it would be if the tensor came from them. Processes that train together
    exchange gradients, and pieces of weights, on the way back; they all have to go the same way.

    Args:
        tensor: float, of any shape.
        parameters: leaves that take a gradient; none are the tensor as it is.
    """
    return _Joined.apply(tensor, *parameters) if parameters else tensor
