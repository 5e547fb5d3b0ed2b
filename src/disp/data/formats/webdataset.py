"""WebDataset's tar files: the members of a sample share a name up to the first point. They may be packed with gzip."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from disp.data.dataset import Source
from disp.data.formats.files import Files, Output, with_values
from disp.data.formats.row import PICTURE_FIELDS, Row
from disp.data.references import TEXTS, Embedded
from disp.errors import DispError
from disp.files import write_atomically
from disp.words import shortened

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "jfif", "heic", "avif", "svg")
_SOME = "jpg, png, webp, gif, bmp or tiff"
# Members that show something and are no picture that is opened here.
_OTHERS = {
    *("jxl", "jp2", "jpe", "dcm", "nii", "npy", "npz", "pth", "pt", "exr", "tga"),
    *("mp4", "avi", "mov", "webm", "mkv", "wav", "mp3", "flac", "ogg", "m4a"),
}
# Members of text, the first of which is a sample's caption.
CAPTIONS = ("txt", "text", "caption")
# A larger member is no picture and no text.
MAX_BYTES = 200_000_000
# Rows of a new shard.
SHARD_ROWS = 5_000
SUFFIXES = (".tar", ".tar.gz", ".tgz")
# Pictures hardly get smaller by packing; what unpacks to far more is made to fill the memory.
MOST_UNPACKED, LEAST_LIMIT = 200, 64_000_000

Members = dict[str, bytes]


def shards(path: Path) -> list[Path]:
    """The file, or the tar files in a folder in order of their names."""
    return sorted(file for file in path.iterdir() if is_shard_name(file.name)) if path.is_dir() else [path]


def is_shard_name(name: str) -> bool:
    """Whether a file is called as a shard is."""
    return name.endswith(SUFFIXES) and not name.startswith(".")


def rows(path: Path, source: Source) -> Iterator[Row]:
    """One row for each sample of each shard: its JSON or its caption, with the pictures among its members.

    Raises:
        DispError: a shard cannot be read.
    """
    number = 0
    for shard in shards(path):
        for key, members in _samples(shard):
            yield Row(f"{shard.name}:sample {key[:200]}", number, _row(key, members), shard.name)
            number += 1


def save(path: Path, outputs: Iterable[Output], like: tuple[Path, Source] | None = None) -> None:
    """Write shards: of the old names, with every member that was there, or new ones."""
    if like is None:
        _save_new(path, outputs)
        return
    olds = {shard.name: shard for shard in shards(like[0])}
    for name, group in groupby(outputs, key=lambda output: output.file):
        write_atomically(path if path.suffix else path / name, partial(_rewrite, outputs=group, old=olds[name]))


def _rewrite(file: Path, outputs: Iterable[Output], old: Path) -> None:
    with _written(file, packed=_is_packed(old)) as tar:
        wanted = iter(outputs)
        output = next(wanted, None)
        for key, members in _samples(old):
            if output is None:
                return
            if output.row.get("__key__") == key:
                for field, content in _changed(members, output.row).items():
                    _add(tar, f"{key}.{field}", content)
                output = next(wanted, None)
    if output is not None:
        raise DispError(f"{old} has changed since it was read; start again")


def _changed(members: Members, row: Mapping[str, Any]) -> Members:
    """A sample's members with the row's texts and pictures."""
    new = dict(members)
    for picture in _embedded(row):
        if picture.name in new:
            new[picture.name] = picture.file.read_bytes()
    if (field := _json_field(members)) is not None:
        before = json.loads(members[field])
        after = {key: value for key, value in row.items() if key not in ("__key__", *PICTURE_FIELDS)}
        # Where the JSON names pictures, these are members, and keep their names; text that holds one is written.
        told = {key: _told(row.get(key), before[key]) for key in (*PICTURE_FIELDS, "__key__") if key in before}
        after = {**after, **told}
        after = {key: after[key] for key in (*before, *after) if key in after}
        if after != before:
            new[field] = json.dumps(with_values(after, text=True), ensure_ascii=False).encode()
    elif (field := _caption_field(members)) is not None and row["text"] != members[field].decode(errors="replace"):
        new[field] = row["text"].encode()
    return new


def _told(new: Any, before: Any) -> Any:
    return new if any(picture.form in TEXTS for picture in _embedded(new)) else before


def _save_new(path: Path, outputs: Iterable[Output]) -> None:
    found = iter(enumerate(outputs))
    number = 0
    first = next(found, None)
    while first is not None:
        follows: list[tuple[int, Output]] = []

        def write(file: Path, first: tuple[int, Output] = first, follows: list[tuple[int, Output]] = follows) -> None:
            with _written(file, packed=file.name.endswith("gz")) as tar:
                _add_new(tar, *first)
                for index, output in found:
                    if index % SHARD_ROWS == 0:
                        follows.append((index, output))
                        return
                    _add_new(tar, index, output)

        write_atomically(path if path.suffix else path / f"shard-{number:06}.tar", write)
        first = follows[0] if follows else None
        number += 1


def _add_new(tar: tarfile.TarFile, index: int, output: Output) -> None:
    key = f"{index:08}"
    pictures = list(_embedded(output.row))
    for place, picture in enumerate(pictures):
        suffix = picture.file.suffix.lstrip(".").lower() or "png"
        _add(tar, f"{key}.{suffix}" if len(pictures) == 1 else f"{key}.{place}.{suffix}", picture.file.read_bytes())
    row = {name: value for name, value in output.row.items() if name not in PICTURE_FIELDS}
    _add(tar, f"{key}.json", json.dumps(row, ensure_ascii=False).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _samples(shard: Path) -> Iterator[tuple[str, Members]]:
    """Key and members of each sample; neighbours with the same key are one."""
    key, members = None, Members()
    try:
        unpacked, limit = 0, max(LEAST_LIMIT, MOST_UNPACKED * shard.stat().st_size)
        with _read(shard) as tar:
            for member in tar:
                unpacked += member.size
                if unpacked > limit:
                    raise DispError(f"{shard} unpacks to more than {MOST_UNPACKED} times its size; unpack it yourself")
                folder, _, name = member.name.rpartition("/")
                stem, point, field = name.partition(".")
                if not member.isfile() or not stem or not point:
                    continue
                whole = f"{folder}/{stem}" if folder else stem
                if whole != key and members:
                    yield str(key), members
                    members = {}
                key = whole
                if member.size > MAX_BYTES:
                    raise DispError(f"{shard}: {member.name[:200]} has {member.size} bytes; the limit is {MAX_BYTES}")
                file = tar.extractfile(member)
                content = file.read() if file else b""
                if len(content) != member.size:
                    raise DispError(f"{shard} ends within {member.name[:200]}; copy or download it again")
                members[field] = content
            if members:
                yield str(key), members
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, OverflowError) as error:
        raise DispError(
            f"{shard} cannot be read as a tar file ({shortened(str(error))}); copy or download it again"
        ) from None


def _is_packed(shard: Path) -> bool:
    with shard.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


@contextmanager
def _read(shard: Path) -> Iterator[tarfile.TarFile]:
    opened = gzip.open(shard, "rb") if _is_packed(shard) else shard.open("rb")
    with opened as file, tarfile.open(fileobj=file, mode="r:") as tar:
        yield tar


@contextmanager
def _written(file: Path, *, packed: bool) -> Iterator[tarfile.TarFile]:
    with file.open("wb") as opened:
        if not packed:
            with tarfile.open(fileobj=opened, mode="w") as tar:
                yield tar
            return
        # Without name and time, so that the same rows are the same bytes.
        with gzip.GzipFile("", "wb", fileobj=opened, mtime=0) as sink, tarfile.open(fileobj=sink, mode="w") as tar:
            yield tar


def _row(key: str, members: Members) -> Any:
    field = _json_field(members)
    if field is not None:
        try:
            row = json.loads(members[field])
        except (ValueError, RecursionError) as error:
            return error
        if not isinstance(row, dict):
            return ValueError(f"{field} holds no object")
    elif (field := _caption_field(members)) is not None:
        row = {"text": members[field].decode(errors="replace")}
    else:
        return ValueError(f"no member called json or txt, only {', '.join(sorted(members))[:200]}")
    pictures = {name: content for name, content in members.items() if name.lower().rpartition(".")[2] in PICTURES}
    row["__key__"] = key
    if not pictures and (other := _not_text(members)):
        return ValueError(f"{other} is no text and no picture that is understood; a picture is called {_SOME}")
    told = next((name for name in PICTURE_FIELDS if row.get(name)), None)
    if told is None and pictures:
        found = [{"bytes": pictures[name], "path": name} for name in sorted(pictures, key=_natural)]
        row.update({"image": found[0]} if len(found) == 1 else {"images": found})
    elif told:
        row[told] = _with_members(row[told], key, pictures)
        # A row that was packed as it was names its pictures as they were called before.
        old = row[told] if isinstance(row[told], list) else [row[told]]
        if len(old) == len(pictures) and all(isinstance(name, str) and not name.startswith("data:") for name in old):
            found = [{"bytes": pictures[name], "path": name} for name in sorted(pictures, key=_natural)]
            row[told] = found if isinstance(row[told], list) else found[0]
    return row


def _not_text(members: Members) -> str | None:
    """The first member that shows or plays something, as its name or its bytes tell; None if there is none."""
    for name, content in members.items():
        if name.lower().rpartition(".")[2] in _OTHERS or b"\0" in content:
            return name
        try:
            content.decode()
        except UnicodeDecodeError:
            return name
    return None


def _with_members(value: Any, key: str, pictures: Members) -> Any:
    """The pictures that JSON names, with the bytes of the members that are meant."""
    if isinstance(value, list):
        return [_with_members(each, key, pictures) for each in value]
    if isinstance(value, str):
        name = value.rpartition("/")[2]
        field = name.removeprefix(f"{key.rpartition('/')[2]}.")
        if field in pictures:
            return {"bytes": pictures[field], "path": field}
    return value


def _natural(name: str) -> list[Any]:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _embedded(value: Any) -> Iterator[Embedded]:
    if isinstance(value, Embedded):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _embedded(each)
    elif isinstance(value, list):
        for each in value:
            yield from _embedded(each)


def _json_field(members: Members) -> str | None:
    return next((name for name in members if name.lower().rpartition(".")[2] == "json"), None)


def _caption_field(members: Members) -> str | None:
    return next((name for name in members if name.lower() in CAPTIONS), None)


WEBDATASET = Files("webdataset", "tar files of WebDataset", rows, save, "", embeds=True)
