"""Datasets in a store that fsspec knows, such as ``s3://bucket/set``: copied into the cache folder, and read there."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from disp.data.references import cache_folder
from disp.errors import DispError
from disp.locks import waiting_for
from disp.words import shortened

# A name as a path has it, where one slash is left of two; drives of Windows have one letter.
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)
# What stores tell of a file besides its size; a file that has changed is copied anew.
MARKS = ("ETag", "etag", "md5Hash", "checksum", "generation", "LastModified", "last_modified", "mtime", "created")


def url_of(path: Path) -> str | None:
    """The URL that a path was made from; None where it is no URL."""
    found = _URL.fullmatch(path.as_posix())
    if found is None:
        return None
    return f"{found[1]}://{'/' if found[1] == 'file' else ''}{found[2]}"


def local_copy(path: Path) -> Path | None:
    """Where the files lie that a URL stands for; None where the path is no URL.

    A folder is copied whole, a file alone. They are copied once, and again when the store says that they have changed.
    Processes that want the same copy at the same time wait for the one that makes it.

    Raises:
        DispError: the store cannot be read, or fsspec lacks what it needs for it.
    """
    url = url_of(path)
    if url is None:
        return None
    if url.startswith("file://"):
        return Path(unquote(url.removeprefix("file://")))
    import fsspec

    try:
        store, inner = fsspec.core.url_to_fs(url)
        files = _files(store, inner)
        told = [[name, _marks(files[name])] for name in sorted(files)]
        key = hashlib.sha256(json.dumps([url, told], default=str).encode()).hexdigest()[:32]
        folder = cache_folder() / "remote" / key
        with waiting_for(folder.with_name(f"{key}.lock")):
            if not folder.exists():
                with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                    for name in files:
                        target = _below(Path(temporary, "copy"), name, inner, url)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        store.get_file(name, str(target))
                    Path(temporary, "copy").rename(folder)
    except FileNotFoundError:
        raise DispError(f"{shortened(url, 300)}: no such data file") from None
    except ImportError as error:
        raise DispError(f"{shortened(url, 300)} cannot be read: {shortened(str(error))}") from None
    except DispError:
        raise
    except Exception as error:  # stores raise what they like
        reason = shortened(" ".join(f"{type(error).__name__}: {error}".split()))
        raise DispError(f"{shortened(url, 300)} cannot be read ({reason}); copy it to a folder and give that") from None
    return folder / PurePosixPath(inner).name


def _files(store: Any, inner: str) -> dict[str, dict[str, Any]]:
    """What the store tells of each file, by its name there."""
    info = store.info(inner)
    if info["type"] == "file":
        return {info["name"]: info}
    found: dict[str, dict[str, Any]] = store.find(inner, detail=True)
    if not found:
        raise FileNotFoundError(inner)
    return found


def _marks(info: dict[str, Any]) -> list[Any]:
    return [info.get("size"), *(str(info[mark]) for mark in MARKS if mark in info)]


def _below(folder: Path, name: str, inner: str, url: str) -> Path:
    """Where a file is copied to, in a folder called as what was asked for."""
    base = PurePosixPath("/", inner)
    parts = PurePosixPath("/", name).relative_to(base.parent).parts
    if ".." in parts:
        raise DispError(f"{shortened(url, 300)} holds {shortened(name)!r}, which is outside of it; copy what you need")
    return folder.joinpath(*parts)
