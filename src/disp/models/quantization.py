"""Linear layers whose weights have four or eight bits, through bitsandbytes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from disp.errors import DispError, install, unknown_name

QUANTIZATIONS = ("4bit", "8bit")


def is_quantized(tensor: Tensor) -> bool:
    """Whether a weight is one of bitsandbytes' own."""
    return type(tensor).__name__ in ("Params4bit", "Int8Params")


def quantize_linear(model: nn.Module, quantization: str, dtype: torch.dtype, chosen: Callable[[str], bool]) -> None:
    """Exchange linear layers for bitsandbytes' own, still without storage."""
    if quantization not in QUANTIZATIONS:
        raise unknown_name("quantization", quantization, QUANTIZATIONS)
    try:
        bitsandbytes: Any = importlib.import_module("bitsandbytes")
    except ImportError:
        raise DispError(f"quantization {quantization!r} needs bitsandbytes: {install('quantization')}") from None

    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or not chosen(name):
            continue
        bias = module.bias is not None
        with torch.device("meta"):
            if quantization == "4bit":
                layer = bitsandbytes.nn.Linear4bit(
                    module.in_features, module.out_features, bias, compute_dtype=dtype, quant_type="nf4"
                )
            else:
                layer = bitsandbytes.nn.Linear8bitLt(
                    module.in_features, module.out_features, bias, has_fp16_weights=False
                )
        layer.requires_grad_(False)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, layer)
    # PEFT asks for these when it puts adapters on quantized layers.
    setattr(model, f"is_loaded_in_{quantization}", True)
