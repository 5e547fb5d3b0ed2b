"""What a tensor has to be so that it can be a model's weight: dense, of floating-point numbers, and finite."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from disp.errors import DispError


def fault_of(tensor: Tensor) -> str | None:
    """Why a tensor is no weight; None if it is one."""
    if tensor.is_meta:
        return "has a shape and no values"
    if tensor.layout is not torch.strided:
        return "is sparse"
    if not tensor.is_floating_point():
        return f"holds {str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers"
    return None if _is_finite(tensor) else "holds numbers that are not finite"


def check_finite(model: nn.Module, what: str) -> None:
    """Make sure that a model computes with numbers: one NaN makes each of its answers NaN.

    Weights that were left on disk, and quantized ones, are not looked at.

    Args:
        model: the model.
        what: names it in the error.

    Raises:
        DispError: a weight is not finite.
    """
    for name, tensor in model.named_parameters():
        if not tensor.is_meta and tensor.is_floating_point() and not _is_finite(tensor):
            remedy = "load it in bfloat16 or float32, or give" if tensor.dtype is torch.float16 else "give"
            raise DispError(
                f"{what}: {name} holds numbers that are not finite; {remedy} a checkpoint from before its training "
                "failed, or copy it again"
            )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.numel():
        return True
    values = tensor.detach()
    # The smallest and the largest are found many times faster than each value is asked, and are NaN if one is.
    least, most = torch.aminmax(values if values.element_size() > 1 else values.float())
    return bool(least.isfinite() & most.isfinite())
