"""Tokenizers of published checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from disp.errors import DispError
from disp.models.checkpoint import is_pointer, read_json, remedy

# Files of a tokenizer that are JSON; after an incomplete download they are pointers to the files.
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")


class Kind(Protocol):
    """A tokenizer class of the library, or its ``AutoTokenizer``."""

    def from_pretrained(self, *folder: Any, **given: Any) -> Any:
        """The tokenizer in a folder."""
        ...


def read_tokenizer(kind: Kind, folder: Path, **given: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, from its folder alone.

    Args:
        kind: the class that reads it.
        folder: the checkpoint.
        given: further arguments of its ``from_pretrained``.

    Raises:
        DispError: a file is damaged, or was not downloaded; it is named.
    """
    for name in FILES:
        if (folder / name).is_file():
            try:
                read_json(folder / name)
            except DispError:
                raise DispError(f"{folder / name} is no JSON; download it again (git lfs pull)") from None
    for file in sorted(folder.glob("*.jinja")):
        if is_pointer(file):
            raise DispError(f"{file} is no chat template; {remedy(file)}")
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True, **given)
    except Exception as error:  # the library's reader raises nothing more particular
        reason = " ".join(str(error).split())[:200]
        raise DispError(f"tokenizer in {folder} cannot be read ({reason}); download its files again") from None
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer
