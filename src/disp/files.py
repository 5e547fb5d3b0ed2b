"""Writing files so that a reader never sees half of one, and hashing them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import stat
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from disp.errors import DispError

# What tells that a folder is a model's or a dataset's.
OTHERS = (
    *("config.json", "adapter_config.json", "data.json", "data.jsonl", "data.json.gz", "data.jsonl.gz", "data.parquet"),
    *("dataset_info.json", "dataset_dict.json", "state.json", "metadata.jsonl", "metadata.csv"),
)
# What the names of files end with that a run would write over in a folder "data".
_OF_DATA = (
    *(".parquet", ".tar", ".tar.gz", ".tgz", ".arrow"),
    *("dataset_info.json", "dataset_dict.json", "state.json", "metadata.jsonl", "metadata.csv"),
)
# What says that a folder is a run's.
RUNS = ("run.json", "audit-run.json")
# What names of half-written files begin with.
TEMPORARY = ".disp-tmp-"
# In a folder while a command fills it that has no other record of what is finished.
UNFINISHED = ".unfinished"
# How each line of an appended file ends: with a checksum of what is before it.
_CHECKSUM = re.compile(rb', "crc32": "([0-9a-f]{8})"\}\n')
_FREE = "free some space there and start the same command again"
_PERMIT = "choose another folder, or change its permissions and start the same command again"
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FREE),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _PERMIT),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file lies where a folder is to be; choose another folder"),
    errno.EIO: "check the disk and start the same command again",
}


@contextmanager
def named_if_unwritable(path: Path) -> Iterator[None]:
    """Name a file or folder, and the remedy, where writing it fails for want of space or permission.

    Raises:
        DispError: it does. Other exceptions pass as they are.
    """
    try:
        yield
    except DispError:
        raise
    except Exception as error:
        code = _errno(error)
        if code not in _REMEDIES:
            raise
        raise DispError(f"{path} cannot be written ({os.strerror(code)}); {_REMEDIES[code]}") from None


def _errno(error: BaseException) -> int:
    """The system's number of what went wrong, 0 if it was something else; some libraries tell it in words."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if found := re.search(r"os error (\d+)|\[?[Ee]rrno (\d+)", str(error)):
        return int(found[1] or found[2])
    if re.search(r"PytorchStreamWriter failed|file write failed|unexpected pos", str(error)):
        return errno.ENOSPC
    before = error.__cause__ or error.__context__
    return 0 if before is None else _errno(before)


def write_atomically(path: Path, write: Callable[[Path], Any], *, lasting: bool = False) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it into place.

    Args:
        path: the file, which gets the permissions of any new file there, whatever ``write`` does.
        write: fills the file that it is given, or puts another one in its place.
        lasting: whether the file is on the disk before it takes its place, for one that replaces what
            `append_jsonl` wrote. That is slow, and files that are made anew from what is there need it not.

    Raises:
        DispError: there is no space, or no permission to write there.
    """
    with named_if_unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, mode = _new_file(path)
        try:
            write(temporary)
            temporary.chmod(mode)
            if lasting:
                _to_disk(temporary)
            os.replace(temporary, path)
            if lasting:
                with suppress(OSError):  # not every system opens folders
                    _to_disk(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _new_file(path: Path) -> tuple[Path, int]:
    """An empty file of a temporary name beside ``path``, and the permissions that the umask gives it."""
    # A name may be as long as the file system takes, and no longer.
    stem = path.stem.encode()[:100].decode(errors="ignore")
    while True:
        temporary = path.with_name(f"{TEMPORARY}{stem}-{secrets.token_hex(4)}{path.suffix}")
        with suppress(FileExistsError):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            os.close(descriptor)
            return temporary, mode


def mode_of_new_files(folder: Path) -> int:
    """The permissions of a file that is made in a folder; to ask for the umask would be to change it for a moment."""
    temporary, mode = _new_file(folder / "mode")
    temporary.unlink()
    return mode


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_texts(path: Path, texts: Iterable[str]) -> None:
    """Write UTF-8 texts one after the other into a file, atomically; one of them is in memory at a time."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.writelines(texts)

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; keys keep their order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file that `write_json` wrote holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def claim(file: Path, run: Mapping[str, Any], what: str, *, ignore: Collection[str] = ()) -> None:
    """Mark a folder as this run's by a file in it, or make sure that it is.

    Args:
        file: where the run is written down.
        run: what makes the run this one; what JSON cannot hold is written as text.
        what: what the folder holds, such as "an audit".
        ignore: names, at any depth of ``run``, of what no result depends on.

    Raises:
        DispError: the file holds a run of another kind, or another run, and the message names what differs; or there is
            no such file, and the folder is a model's or a dataset's.
    """
    written = {"what": what, **_without(json.loads(json.dumps(run, default=str)), ignore)}
    if not file.exists():
        check_unused(file.parent)
        _check_no_run(file.parent)
        write_json(file, written)
        return
    try:
        before = _flat(_without(json.loads(file.read_text(encoding="utf-8")), ignore))
        if not isinstance(before, dict) or "" in before:
            raise ValueError("it holds no object")
    except (ValueError, RecursionError) as error:
        raise DispError(f"{file} does not say what run this is ({error}); choose another folder or delete it") from None
    if (other := before.get("what", what)) != what:
        raise DispError(f"{file.parent} holds {other}, which is something else than {what}; choose another folder")
    now = _flat({**written, "what": before.get("what")})
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        shown = ", ".join(_difference(name, before.get(name), now.get(name)) for name in differing[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise DispError(f"{file.parent} holds {what} that differs in {shown}{more}; choose another folder or delete it")


def begin(folder: Path, what: str) -> None:
    """Mark a folder as being filled; one that is marked already was left by a run that was stopped, and is filled anew.

    Args:
        folder: made if it is not there.
        what: the command that fills it.

    Raises:
        DispError: it holds a model or a dataset that is not marked, or another command began it.
    """
    marker = folder / UNFINISHED
    if marker.exists():
        before = marker.read_text(encoding="utf-8", errors="replace").strip()
        if before != what:
            raise DispError(f"{folder} was begun by {before[:40]!r} and not finished; delete it or choose another")
        return
    check_unused(folder)
    _check_no_run(folder)
    write_text(marker, f"{what}\n")


def finish(folder: Path) -> None:
    """Take the mark of `begin` off."""
    (folder / UNFINISHED).unlink(missing_ok=True)


def check_unused(folder: Path) -> None:
    """Make sure that a folder is not a model's or a dataset's.

    Raises:
        DispError: it is.
    """
    data = folder / "data"
    below = (
        [f"data/{file.name}" for file in sorted(data.iterdir()) if file.name.endswith(_OF_DATA)]
        if data.is_dir()
        else []
    )
    for name in (*OTHERS, *below[:1]):
        if (folder / name).exists():
            raise DispError(f"{folder} holds {name}, which is not of this run; choose another folder, or delete it")


def _check_no_run(folder: Path) -> None:
    for name in RUNS:
        if (folder / name).exists():
            raise DispError(f"{folder} holds {name} of another run; choose another folder")


def _difference(name: str, before: Any, now: Any) -> str:
    values = [json.dumps(value, ensure_ascii=False) for value in (before, now)]
    # Hashes tell a person nothing.
    return name if max(map(len, values)) > 60 else f"{name} ({values[0]} there, {values[1]} now)"


def _without(value: Any, ignore: Collection[str]) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without(each, ignore) for key, each in value.items() if key not in ignore}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    return {
        key: each
        for part, below in value.items()
        for key, each in _flat(below, f"{name}.{part}" if name else part).items()
    }


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]], *, checked: bool = False) -> None:
    """Write one JSON object a line, atomically; one row at a time is in memory.

    Args:
        path: the file.
        rows: the objects.
        checked: whether each gets a checksum as a last field, as in `append_jsonl`; see `checked_row`.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for row in rows:
                file.write(_checked_line(row) if checked else _line(row))

    write_atomically(path, write)


def append_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append JSON lines and flush them to disk, for results that must survive a kill.

    Each row gets a last field ``crc32``, a checksum of the line before it, by which `read_finished_jsonl` knows a
    damaged one.

    Raises:
        DispError: there is no space, or no permission to write there.
    """
    with named_if_unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b"".join(map(_checked_line, rows)))
            file.flush()
            os.fsync(file.fileno())


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _checked_line(row: Mapping[str, Any]) -> bytes:
    said = _line(row)[:-2]
    return said + f', "crc32": "{zlib.crc32(said):08x}"}}\n'.encode()


def read_finished_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that `append_jsonl` wrote, without their checksums.

    A torn last line is cut off the file; lines that are damaged are taken out of it, and said to be on stderr, so that
    what they held is computed again.
    """
    if not path.exists():
        return
    damaged = False
    end = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            row = checked_row(line)
            if row is None:
                damaged = True
            else:
                yield row
    if end < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(end)
    if damaged:
        _take_out_damaged(path)


def read_lines(path: Path, start: int = 0) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """The undamaged lines of a file that another process may be appending to; nothing is changed in it.

    Args:
        path: a file that `append_jsonl` writes, which need not be there yet.
        start: the byte to begin at, where a line begins.

    Yields:
        The byte after a line, the line itself, and the row that it holds. A torn last line is left for later.
    """
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            row = checked_row(line)
            if row is not None:
                yield start, line, row


def checked_row(line: bytes) -> dict[str, Any] | None:
    """What a line with a checksum holds, without that; None if it is damaged."""
    found = _CHECKSUM.fullmatch(line, max(0, len(line) - 23))
    if found is None or int(found[1], 16) != zlib.crc32(line[: found.start()]):
        return None
    row = json.loads(line[: found.start()] + b"}")
    return row if isinstance(row, dict) else None


def _take_out_damaged(path: Path) -> None:
    count = 0

    def write(temporary: Path) -> None:
        nonlocal count
        with path.open("rb") as old, temporary.open("wb") as new:
            for line in old:
                if checked_row(line) is None:
                    count += 1
                else:
                    new.write(line)

    write_atomically(path, write, lasting=True)
    what = "1 line is" if count == 1 else f"{count} lines are"
    print(f"{path}: {what} damaged and computed again", file=sys.stderr)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, or of the names and bytes of the files in a folder."""
    digest = hashlib.sha256()
    if path.is_dir():
        for each in sorted(below for below in path.rglob("*") if below.is_file()):
            digest.update(json.dumps([each.relative_to(path).as_posix(), sha256(each)]).encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
