"""Models in the library's own format, as its ``save_pretrained`` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer
from transformers.utils import logging

from disp.errors import DispError
from disp.models.checkpoint import check_fit, integers_among, stored_types
from disp.models.interface import MDLM
from disp.models.parts.tokenizers import read_tokenizer

Model = TypeVar("Model", bound=MDLM)


def load_pretrained(model_class: type[Model], folder: Path, *, dtype: torch.dtype, device: str) -> Model:
    """A model and its tokenizer from a folder that ``save_pretrained`` wrote.

    Raises:
        DispError: a file is missing or damaged, or weights do not fit the model by name, shape or type.
    """
    stored = stored_types(folder)
    try:
        with no_bar():
            loaded: Any = model_class.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below
            )
        model: Model
        model, report = loaded
        check_fit(
            str(folder),
            missing=report["missing_keys"],
            surplus=report["unexpected_keys"],
            shapes={str(each) for each in report["mismatched_keys"]},
            integers=integers_among(stored, model.state_dict()),
        )
        model.tokenizer = read_tokenizer(AutoTokenizer, folder, config=model.config)
    except (OSError, ValueError, SafetensorError) as error:
        raise DispError(
            f"model {str(folder)!r}: the weights or the tokenizer cannot be read ({error}); copy the folder anew"
        ) from None
    return model.to(device)  # type: ignore[arg-type]  # the library's decorator hides `self`


@contextmanager
def no_bar() -> Iterator[None]:
    """Without the library's bar, which a small model fills at once."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
