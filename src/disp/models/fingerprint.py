"""Telling models apart, so that results of one are never taken for those of another."""

from __future__ import annotations

import hashlib

import torch

from disp.models.interface import MDLM

# Values of each weight that are looked at: fine-tuning changes nearly all of them.
VALUES = 64


def fingerprint(model: MDLM) -> str:
    """Hexadecimal digest of a model: its response slots, its weights' names, shapes, precision, and some values."""
    digest = hashlib.sha256(f"{model.gen_length}\n".encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        if parameter.is_meta:  # weights that are kept on disk until they are needed
            continue
        flat = parameter.detach().flatten()
        values = flat[:: max(1, len(flat) // VALUES)].cpu().contiguous()
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
