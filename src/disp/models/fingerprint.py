"""Telling models apart, so that results of one are never taken for those of another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from disp.models.interface import MDLM

# Values of each weight that are looked at: fine-tuning changes nearly all of them.
VALUES = 64
# What a config says at any depth, and no result goes by: where a model lies, and who wrote it with which library.
_NAMES = ("_name_or_path", "name_or_path", "transformers_version", "architectures")
# What the library sets for a while, such as its trainer, and no family reads.
_PASSING = ("use_cache", "output_attentions", "output_hidden_states", "return_dict")
# Each weight says its precision by itself, also where the user chose another than the checkpoint's.
_PRECISION = ("dtype", "torch_dtype")
# What the model itself says as it is now; the config says what it was loaded with.
_OF_MODEL = ("gen_length", "generation")


def fingerprint(model: MDLM) -> str:
    """Hexadecimal digest of a model: how it reads and answers, and its weights.

    Of each weight these are the name, the shape, the precision and some values; of the rest the config (how pictures
    become visual tokens, how far attention reaches), the response slots and how it decodes by itself, the special
    tokens, the system message of chats that have none, the tokenizer's words and the chat template. It is the same
    wherever the model lies, on every device and in every process.
    """
    digest = hashlib.sha256(json.dumps(_reading(model), sort_keys=True).encode())
    for name, tensor in _weights(model):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        if tensor.is_meta:  # weights that are kept on disk until they are needed
            continue
        flat = tensor.detach().flatten()
        values = flat[:: max(1, len(flat) // VALUES)].cpu().contiguous()
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _reading(model: MDLM) -> dict[str, Any]:
    """What becomes of texts and pictures before and behind the weights, as JSON has it."""
    tokenizer = getattr(model, "tokenizer", None)
    config = model.config.to_dict()
    return {
        "config": _without({name: value for name, value in config.items() if name not in _OF_MODEL}),
        "gen_length": model.gen_length,
        "generation": model.generation_defaults,
        "tokens": [model.mask_token_id, *model.end_token_ids],
        "system": model.default_system,
        "words": tokenizer and sorted(tokenizer.get_vocab().items()),
        "template": tokenizer and tokenizer.chat_template,
    }


def _without(value: Any) -> Any:
    """A config without what tells no model from another, those of the configs in it included."""
    if isinstance(value, dict):
        # Keys become text here: JSON cannot put numbers and texts in one order.
        left_out = (*_NAMES, *_PASSING, *_PRECISION)
        return {str(name): _without(each) for name, each in value.items() if name not in left_out}
    return [_without(each) for each in value] if isinstance(value, list | tuple) else value


def _weights(model: MDLM) -> Iterator[tuple[str, Tensor]]:
    """The parameters, and what a checkpoint holds besides them."""
    yield from model.named_parameters()
    for place, module in model.named_modules():
        for name, tensor in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{place}.{name}", tensor
