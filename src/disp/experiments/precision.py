"""Half precision for the experiments, where the CPU gains by it."""

from __future__ import annotations

import torch


def fast_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 matrix products, which then take less than half of the time."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def half_precision() -> torch.autocast:
    """A context of bfloat16 matrix products, if `fast_bfloat16`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16())
