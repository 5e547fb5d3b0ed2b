"""Checkpoints of a fine-tuning run that was stopped: which can be gone on from, and which are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError, safe_open

from disp.errors import DispError


def checkpoints_in(folder: Path) -> tuple[Path | None, list[Path]]:
    """The checkpoint of the latest step, if any, and those whose saving was cut short."""
    torn = []
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            # The library writes it last.
            step = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
            whole[int(step)] = path
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            torn.append(path)
    return (whole[max(whole)] if whole else None), torn


def check_checkpoint(folder: Path) -> None:
    """Make sure that the files of a checkpoint are whole, before the library reads them.

    Raises:
        DispError: one is not.
    """
    for file in sorted(folder.iterdir()):
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as weights:
                    weights.keys()
            elif file.suffix in (".pt", ".pth"):  # archives, of which each member has a checksum
                with ZipFile(file) as archive:
                    if (damaged := archive.testzip()) is not None:
                        raise ValueError(f"{damaged} in it has another checksum")
        except (SafetensorError, BadZipFile, OSError, ValueError, NotImplementedError, EOFError, RuntimeError) as error:
            raise DispError(
                f"{file} of a checkpoint is damaged ({error}); delete {folder} and start the same command again"
            ) from None
