"""Writing files so that a reader never sees half of one, and hashing them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from disp.errors import DispError

# What tells that a folder is a model's or a dataset's.
OTHERS = ("config.json", "adapter_config.json", "data.json", "data.jsonl", "data.parquet", "dataset_info.json")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; keys keep their order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def claim(file: Path, run: Mapping[str, Any], what: str, *, ignore: Collection[str] = ()) -> None:
    """Mark a folder as this run's by a file in it, or make sure that it is.

    Args:
        file: where the run is written down.
        run: what makes the run this one; what JSON cannot hold is written as text.
        what: what the folder holds, such as "an audit".
        ignore: names, at any depth of ``run``, of what no result depends on.

    Raises:
        DispError: the file holds another run, and the message names what differs; or there is no such file, and the
            folder is a model's or a dataset's.
    """
    written = _without(json.loads(json.dumps(run, default=str)), ignore)
    if not file.exists():
        check_unused(file.parent)
        write_json(file, written)
        return
    try:
        before = _flat(_without(json.loads(file.read_text(encoding="utf-8")), ignore))
    except ValueError as error:
        raise DispError(f"{file} does not say what run this is ({error}); choose another folder or delete it") from None
    now = _flat(written)
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        shown = ", ".join(_difference(name, before.get(name), now.get(name)) for name in differing[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise DispError(f"{file.parent} holds {what} that differs in {shown}{more}; choose another folder or delete it")


def check_unused(folder: Path) -> None:
    """Make sure that a folder is not a model's or a dataset's.

    Raises:
        DispError: it is.
    """
    for name in OTHERS:
        if (folder / name).exists():
            raise DispError(f"{folder} holds {name}, which is not of this run; choose another folder")


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


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically; one row at a time is in memory."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    write_atomically(path, write)


def append_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append JSON lines and flush them to disk, for results that must survive a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


def read_finished_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a file that `append_jsonl` wrote; a torn last line is cut off the file."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            yield json.loads(line)
    if end < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(end)


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
