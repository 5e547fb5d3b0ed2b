"""Half precision for the experiments, where the machine gains by it."""

from __future__ import annotations

from pathlib import Path

import torch

from disp.models.hub import BUILTIN
from disp.models.interface import MDLM
from disp.models.loading import load_model


def load_float32(name: str | Path = BUILTIN) -> MDLM:
    """A model in float32, on a GPU too: its products may be rounded (`half_precision`), small training steps not."""
    return load_model(name, dtype="float32")


def fast_bfloat16() -> bool:
    """Whether there is a GPU, or a CPU with instructions for bfloat16 products, which halve their time or better."""
    capabilities = torch.cpu.get_capabilities()
    return torch.cuda.is_available() or any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def half_precision() -> torch.autocast:
    """A context of bfloat16 matrix products, if `fast_bfloat16`."""
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16, enabled=fast_bfloat16())
