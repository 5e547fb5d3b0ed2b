"""Whether a file may hold rows, so that it is named where it lies beside a dataset and was not read."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from disp.data.dataset import Source
from disp.data.formats import image_folder, llama_factory
from disp.data.formats.dialects import is_row
from disp.data.formats.json_files import is_json_name, json_layout
from disp.data.formats.members import PICTURES
from disp.data.formats.table import FILES
from disp.errors import DispError
from disp.files import RUNS

# A larger JSON or zip file, or one among more of them, is not opened to see whether it holds rows: it counts as data.
_LARGEST = 1 << 24
_MOST = 100
# What tables, tar files and JSON are called in any library, and what such files are called that are compressed.
_TABLE = re.compile(r"\.(parquet|arrow|tar|tgz|csv|tsv)(\.(gz|bz2|xz|zst|lz4|zip))?\Z", re.IGNORECASE)
_JSON = re.compile(r"\.(jsonl?|ndjson)(\.gz)?\Z", re.IGNORECASE)
_PACKED_JSON = re.compile(r"\.(jsonl?|ndjson)\.(bz2|xz|zst|lz4|zip)\Z", re.IGNORECASE)
# How deep rows may lie in what a JSON file holds, and how many things of each kind are looked at there.
_DEEPEST, _WIDEST = 4, 1000
# What a run says of itself in its file beside "what" it is; some kinds say the one, others the other.
_OF_A_RUN = frozenset(("config", "weights", "data_sha256", "data", "seed", "rows", "share"))
# Patterns in README.md, and files that one may stand for.
_MOST_PATTERNS, _MOST_MATCHES = 1000, 1000


def holds_rows(file: Path) -> bool:
    """Whether a JSON file lists rows of some format; not where they lie deeper in it, or it cannot be read."""
    try:
        return _lists_rows(file)
    except DispError:
        return False


def is_data_name(name: str) -> bool:
    """Whether a file is called as tables, tar files or JSON are, also compressed; what `datasets` caches is none."""
    return any(kind.search(name) for kind in (_JSON, _PACKED_JSON)) or _is_table(name)


def may_hold_rows(folder: Path, names: list[str]) -> Iterator[Path]:
    """The files of a folder that hold rows or may do so: JSON files are opened, tables count by their names.

    Args:
        folder: the folder.
        names: of files in it.
    """
    opened = 0
    run = is_run(folder, names)
    for name in names:
        file = folder / name
        if _is_table(name) or _PACKED_JSON.search(name):
            yield file
        elif name.lower().endswith(".zip"):
            opened += 1
            if opened > _MOST or _zip_may(file):
                yield file
        # What a run writes of its rows looks like rows.
        elif _JSON.search(name) and not run and name != llama_factory.INFO:
            opened += 1
            if opened > _MOST or _json_may(file):
                yield file


def is_run(folder: Path, names: list[str]) -> bool:
    """Whether a folder with files of these names is a run's; a run.json that says nothing of a run does not make it."""
    for name in RUNS:
        if name in names:
            try:
                found = json.loads((folder / name).read_bytes())
            except (OSError, ValueError, RecursionError):
                continue
            if isinstance(found, dict) and isinstance(found.get("what"), str) and _OF_A_RUN & found.keys():
                return True
    return False


def declared(folder: Path) -> tuple[list[Path], list[str]]:
    """What the head of a README.md names as data for `datasets`: files that are there, and names that lead elsewhere.

    Pictures are no rows, and are passed over.
    """
    files, elsewhere = [], []
    for pattern in islice(dict.fromkeys(_patterns(folder / "README.md")), _MOST_PATTERNS):
        # What many "**" may mean takes too long to find out.
        if "://" in pattern or os.path.isabs(pattern) or ".." in Path(pattern).parts or pattern.count("**") > 1:
            elsewhere.append(pattern)
            continue
        try:
            found = list(islice(folder.glob(pattern), _MOST_MATCHES))
        except (ValueError, OSError):  # "**" within a word
            continue
        files += [file for file in found if file.is_file() and file.suffix[1:].lower() not in PICTURES]
    return files, elsewhere


def _patterns(readme: Path) -> Iterator[str]:
    try:
        with readme.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_LARGEST)
        head = re.match(r"\ufeff?---[ \t]*\n(.*?\n)---", text, re.DOTALL)
        found = yaml.safe_load(head[1]) if head else None
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return
    configs = found.get("configs") if isinstance(found, dict) else None
    for config in configs if isinstance(configs, list) else ():
        if isinstance(config, dict):
            yield from _paths(config.get("data_files"))


def _paths(value: Any) -> Iterator[str]:
    """The names in ``data_files``: one, several, or some for each split."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in [value["path"]] if "path" in value else value.values():
            yield from _paths(each)
    elif isinstance(value, list):
        for each in value:
            yield from _paths(each)


def _is_table(name: str) -> bool:
    cached = name.startswith("cache-") and name.endswith(".arrow")  # which `datasets` makes for itself
    return (_TABLE.search(name) is not None or name.lower() in image_folder.NAMES) and not cached


def _json_may(file: Path) -> bool:
    try:
        # Called otherwise, such as x.JSONL, it is read by others alone.
        return file.stat().st_size > _LARGEST or not is_json_name(file.name) or _has_rows(file)
    except OSError:  # what cannot be looked at may be data
        return True
    except DispError:  # and so may what is damaged, or in another encoding
        return file.stat().st_size > 0


def _zip_may(file: Path) -> bool:
    try:
        if file.stat().st_size > _LARGEST:
            return True
        with zipfile.ZipFile(file) as packed:
            return any(is_data_name(name) for name in packed.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return True


def _lists_rows(file: Path) -> bool:
    layout = json_layout(file, is_row)
    return any(_has_row(row.value, 0) for row in FILES[layout].rows(file, Source(layout)))


def _has_rows(file: Path) -> bool:
    """Whether any row is one, or what the file holds instead of rows has some in it.

    Raises:
        DispError: it cannot be read.
    """
    try:
        return _lists_rows(file)
    except DispError:
        try:
            return _has_row(json.loads(file.read_bytes()), _DEEPEST)
        except (OSError, ValueError, RecursionError):
            raise DispError(f"{file} cannot be read") from None


def _has_row(value: Any, deep: int) -> bool:
    if is_row(value) or (isinstance(value, dict) and "file_name" in value and is_row({**value, "image": "0.png"})):
        return True
    if deep and isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return any(_has_row(each, deep - 1) for each in islice(inner, _WIDEST))
    return False
