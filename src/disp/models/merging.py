"""Writing a fine-tuned model as one checkpoint."""

from __future__ import annotations

from pathlib import Path

from disp.errors import DispError
from disp.files import UNFINISHED, begin, finish
from disp.locks import LOCK, alone
from disp.models.adapters import is_adapter
from disp.models.hub import resolve
from disp.models.loading import load_for
from disp.models.saving import save_model


@alone
def merge(model_folder: str | Path, out: Path, base: str | Path | None = None, projector: Path | None = None) -> None:
    """Write a fine-tuned model as one checkpoint with its family's published key names.

    Args:
        model_folder: an adapter, whose weights are put on its base, or a whole model.
        out: folder for the checkpoint.
        base: the model that an adapter belongs to, if it no longer lies where it was.
        projector: a file with a fine-tuned projector, which takes the place of the model's own.

    Raises:
        DispError: the model cannot be loaded, or ``out`` is the folder it is read from or holds anything.
    """
    folder = resolve(model_folder)
    if out.resolve() == folder.resolve():
        raise DispError(f"{out} holds the model that is to be merged; write to another folder")
    # What a stopped merge left is written anew.
    if not (out / UNFINISHED).exists() and any(path.name != LOCK for path in out.iterdir()):
        raise DispError(f"{out} is not empty; write to another folder")
    if base is not None and not is_adapter(folder):
        raise DispError(f"{folder} is no adapter (no adapter_config.json), so it takes no base")
    model = load_for(model_folder, base, "cpu", "auto", projector=projector)
    begin(out, "merge")
    save_model(model, out)
    finish(out)
