"""Datasets of the Hugging Face hub, through the library `datasets`."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from disp.data.references import cache_folder
from disp.errors import DispError, install

_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def is_hub_id(name: str) -> bool:
    """Whether a name may be a hub id: owner/name, or owner/name:configuration."""
    return (
        bool(_ID.fullmatch(name)) and not name.startswith((".", "/")) and not name.endswith((".json", ".jsonl", ".gz"))
    )


def fetch(name: str, split: str | None) -> Path:
    """A folder with a dataset of the hub, as `save_to_disk` writes it; it is fetched once for each version.

    Args:
        name: owner/name, or owner/name:configuration.
        split: the part to read; "train" if there is one.

    Raises:
        DispError: the library is missing, or the dataset cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise DispError(
            f"{name}: no such file, and reading it as a hub id needs the library datasets: {install('hf')}"
        ) from None
    identity, _, config = name.partition(":")
    try:
        found: Any = datasets.load_dataset(identity, config or None, split=split)
        if isinstance(found, dict):
            parts = list(found)
            part = parts[0] if len(parts) == 1 else "train"
            if part not in parts:
                raise DispError(f"{name} has the splits {', '.join(map(str, parts))}; choose one with --split")
            found = found[part]
        key = hashlib.sha256(f"{name} {split} {found._fingerprint}".encode()).hexdigest()[:16]
        folder = cache_folder() / "hub" / f"{identity.replace('/', '--')}-{key}"
        if not (folder / "state.json").exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                found.save_to_disk(f"{temporary}/data")
                shutil.rmtree(folder, ignore_errors=True)
                Path(temporary, "data").rename(folder)
    except DispError:
        raise
    except Exception as error:  # the library and what it calls raise what they like
        line = " ".join(str(error).split())[:200]
        raise DispError(f"{name}: no such file, and no dataset of the hub that can be had ({line})") from None
    return folder
