"""Datasets in a store that fsspec knows, such as ``s3://bucket/set``.

What is read is copied into the cache folder and read there; what is written is made in a temporary folder and copied.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
    if (here := _here(url)) is not None:
        return here
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
        raise DispError(
            f"{shortened(url, 300)} cannot be read ({_reason(error)}); copy it to a folder and give that"
        ) from None
    return folder / PurePosixPath(inner).name


@contextmanager
def written_to(out: Path) -> Iterator[Path]:
    """The folder to write a dataset into that is meant for ``out``, a folder or a URL.

    A folder is that folder itself. For a URL it is a temporary one, which is copied to the store at the end of the
    block, unless that raised: what lies in folders first, then the files beside them, so that the data file is there
    when its pictures are.

    Raises:
        DispError: something lies at the URL already, or the store cannot be read or written to.
    """
    url = url_of(out)
    if url is None:
        yield out
        return
    if (here := _here(url)) is not None:
        yield here
        return
    store, inner = _unused(url)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "dataset")
        yield folder
        files = [path for path in folder.rglob("*") if path.is_file()]
        try:
            for path in sorted(files, key=lambda path: (-len(path.parts), path)):
                target = f"{inner.rstrip('/')}/{path.relative_to(folder).as_posix()}"
                store.makedirs(target.rpartition("/")[0], exist_ok=True)
                store.put_file(str(path), target)
        except Exception as error:  # stores raise what they like
            raise DispError(
                f"{shortened(url, 300)} cannot be written ({_reason(error)}); it may be there in part: delete it, or "
                "write to a folder and copy that"
            ) from None


def _here(url: str) -> Path | None:
    """What a URL of this machine's own files stands for; None for another one."""
    return Path(unquote(url.removeprefix("file://"))) if url.startswith("file://") else None


def _unused(url: str) -> tuple[Any, str]:
    """The store of a URL and the name in it, where nothing lies yet."""
    import fsspec

    try:
        store, inner = fsspec.core.url_to_fs(url)
        used = bool(store.find(inner)) if store.exists(inner) else False
    except Exception as error:  # stores raise what they like
        raise DispError(
            f"{shortened(url, 300)} cannot be reached ({_reason(error)}); write to a folder and copy that"
        ) from None
    if used:
        raise DispError(f"{shortened(url, 300)} exists; choose another place")
    return store, inner


def _reason(error: Exception) -> str:
    return shortened(" ".join(f"{type(error).__name__}: {error}".split()))


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
