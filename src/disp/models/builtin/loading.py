"""Loading a model of the built-in kind."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer

from disp.errors import DispError
from disp.models.builtin.model import BuiltinModel
from disp.models.parts.tokenizers import read_tokenizer
from disp.models.quiet import no_bar


def load(folder: Path, *, dtype: torch.dtype, device: str) -> BuiltinModel:
    """The model and its tokenizer from a folder that ``save_pretrained`` wrote.

    Raises:
        DispError: a file is missing or damaged.
    """
    try:
        with no_bar():
            model = BuiltinModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
        model.tokenizer = read_tokenizer(AutoTokenizer, folder, config=model.config)
    except (OSError, ValueError, SafetensorError) as error:
        raise DispError(
            f"model {str(folder)!r}: the weights or the tokenizer cannot be read ({error}); copy the folder anew"
        ) from None
    return model.to(device)  # type: ignore[arg-type]  # the library's decorator hides `self`
