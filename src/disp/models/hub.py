"""Where models lie: in a folder, among those that come with `disp`, or on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from disp.errors import DispError
from disp.models.families import FAMILIES, family

# The model that comes with `disp`: the name of its family.
BUILTIN = "builtin"
# Files of a hub repository that are downloaded: no pickles, no code.
_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
_WEIGHTS = "*.safetensors"
# "./model" and "../model" are folders.
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def resolve(name: str | Path, *, weights: bool = True) -> Path:
    """The folder of a model: of the built-in one, a local one, or the copy of one on the hub.

    Args:
        name: what it is called.
        weights: whether a copy has to hold them; a plan does without.

    Raises:
        DispError: there is no such folder, and it is no id of a hub repository or cannot be downloaded.
    """
    if (folder := local_folder(name)) is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = [*_SMALL_FILES, _WEIGHTS] if weights else _SMALL_FILES
        return Path(snapshot_download(str(name), allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DispError(
            f"model {name!r} is no local folder and cannot be had from the Hugging Face hub ({reason}); check the "
            "name, or download the checkpoint on another machine and give its folder"
        ) from None


def local_folder(name: str | Path) -> Path | None:
    """The folder of a model on this machine; None for a name that can only be a hub repository's.

    Raises:
        DispError: there is no such folder, and it is no id of a hub repository.
    """
    own = _own_folder(name)
    if own is not None:
        return own
    if not (Path(name).exists() or isinstance(name, Path)) and _HUB_ID.fullmatch(name):
        return None
    if not Path(name).is_dir():
        raise DispError(
            f"model {str(name)!r}: {Path(name)} does not exist or is no folder; give {BUILTIN!r}, a folder with "
            "config.json and safetensors, or the id of a published checkpoint on the Hugging Face hub"
        )
    return Path(name)


def _own_folder(name: str | Path) -> Path | None:
    """Where the model lies, if it is one that comes with `disp`."""
    return family(str(name)).folder if str(name) in FAMILIES else None


def lasting_name(name: str) -> str:
    """What `load_model` finds the same model by from any folder; PEFT writes it into the adapters that it saves."""
    return str(Path(name).resolve()) if _own_folder(name) is None and Path(name).exists() else name
