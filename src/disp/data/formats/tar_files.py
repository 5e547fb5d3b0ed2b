"""Tar files, packed with gzip or not: read to their end, with what links in them point to, and written."""

from __future__ import annotations

import gzip
import io
import posixpath
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from disp.errors import DispError
from disp.words import shortened

# A larger member is no picture and no text.
MAX_BYTES = 200_000_000
# Pictures hardly get smaller by packing; what unpacks to far more is made to fill the memory.
MOST_UNPACKED, LEAST_LIMIT = 200, 64_000_000
# Links to links, after which they are taken for a circle.
_MOST_LINKS = 8
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Member:
    """A file in a tar file.

    Attributes:
        name: as the tar file has it.
        content: its bytes.
        fault: why there are none; None if there are.
    """

    name: str
    content: bytes
    fault: str | None = None


def members(shard: Path) -> Iterator[Member]:
    """The members of a tar file in order, without folders; a link has the content of what it points to.

    Raises:
        DispError: it is no tar file, is cut off or damaged, holds a member that is too large, or unpacks to too much.
    """
    with _opened(shard) as (file, tar):
        unpacked, limit = 0, max(LEAST_LIMIT, MOST_UNPACKED * shard.stat().st_size)
        by_name: Mapping[str, tarfile.TarInfo] | None = None
        for header in _headers(tar):
            if header.isdir():
                continue
            found: tarfile.TarInfo | None = header
            if header.issym() or header.islnk():
                if is_packed(shard):  # each step back unpacks it from its beginning
                    yield Member(header.name, b"", f"{header.name} is a link; unpack the tar file with gunzip")
                    continue
                by_name = _by_name(shard) if by_name is None else by_name
                found = _target(header, by_name)
            if found is None or not found.isfile():
                what = f"a link to {header.linkname}, which is not in the tar file" if header.linkname else "no file"
                yield Member(header.name, b"", f"{header.name} is {what}; pack it again with tar --dereference")
                continue
            unpacked += found.size
            if unpacked > limit:
                raise _bomb(shard)
            if found.size > MAX_BYTES:
                raise DispError(f"{shard}: {header.name[:200]} has {found.size} bytes; the limit is {MAX_BYTES}")
            extracted = tar.extractfile(found)
            content = extracted.read() if extracted else b""
            if len(content) != found.size:
                raise DispError(f"{shard} ends within {header.name[:200]}; copy or download it again")
            yield Member(header.name, content)
        _check_end(shard, file, tar.offset, limit)


def names(shard: Path) -> Iterator[str]:
    """The names of the members, without folders.

    Raises:
        DispError: it cannot be read as a tar file.
    """
    with _opened(shard) as (_, tar):
        for header in _headers(tar):
            if not header.isdir():
                yield header.name


def is_packed(shard: Path) -> bool:
    """Whether a file is packed with gzip."""
    with shard.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


@contextmanager
def written(file: Path, *, packed: bool) -> Iterator[tarfile.TarFile]:
    """A new tar file, for `add`."""
    with file.open("wb") as opened:
        if not packed:
            with tarfile.open(fileobj=opened, mode="w") as tar:
                yield tar
            return
        # Without name and time, so that the same rows are the same bytes.
        with gzip.GzipFile("", "wb", fileobj=opened, mtime=0) as sink, tarfile.open(fileobj=sink, mode="w") as tar:
            yield tar


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member to a new tar file."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@contextmanager
def _opened(shard: Path) -> Iterator[tuple[IO[bytes], tarfile.TarFile]]:
    try:
        file: IO[bytes] = gzip.open(shard, "rb") if is_packed(shard) else shard.open("rb")  # type: ignore[assignment]
        with file, tarfile.open(fileobj=file, mode="r:") as tar:
            yield file, tar
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, OverflowError) as error:
        raise DispError(
            f"{shard} cannot be read as a tar file ({shortened(str(error))}); copy or download it again"
        ) from None


def _headers(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for header in tar:
        if header.size < 0:  # the next header would be this one again, for ever
            raise tarfile.ReadError(f"{header.name[:200]} has a size below 0")
        yield header


def _check_end(shard: Path, file: IO[bytes], offset: int, limit: int) -> None:
    """Make sure that a tar file has its end where the last member was read.

    Python takes a damaged header for the end. GNU tar, Python and WebDataset's own writer all end a tar file with
    blocks of zeros, so one without them is not whole, also where it ends exactly behind a member.
    """
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise DispError(
            f"{shard} is cut off or damaged at byte {offset}, where a member or the end of the tar file must be; copy "
            "or download it again, or pack it again"
        )
    while chunk := file.read(_CHUNK):
        if chunk.strip(b"\0"):
            raise DispError(
                f"{shard} holds more behind the end of the tar file, as tar files that were joined do, and readers "
                "stop at the first end; keep them as files of their own, or pack them into one"
            )
        offset += len(chunk)
        if offset > limit:
            raise _bomb(shard)


def _bomb(shard: Path) -> DispError:
    return DispError(f"{shard} unpacks to more than {MOST_UNPACKED} times its size; unpack it yourself")


def _by_name(shard: Path) -> dict[str, tarfile.TarInfo]:
    with _opened(shard) as (_, tar):
        return {posixpath.normpath(header.name): header for header in _headers(tar)}


def _target(link: tarfile.TarInfo, by_name: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """What a link points to, None if that is not in the tar file."""
    found: tarfile.TarInfo | None = link
    for _ in range(_MOST_LINKS):
        if found is None or not (found.issym() or found.islnk()):
            return found
        # A hard link is named from the root of the tar file, another one from its own folder.
        folder = posixpath.dirname(found.name) if found.issym() else ""
        found = by_name.get(posixpath.normpath(posixpath.join(folder, found.linkname)))
    return None
