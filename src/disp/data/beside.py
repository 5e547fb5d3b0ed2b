"""What lies beside a dataset: data that were not read with it, and what is said of a folder that holds none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from disp.data.formats import image_folder, webdataset
from disp.data.formats.members import CAPTIONS, PICTURES
from disp.data.formats.splits import part_of
from disp.data.other_files import remedy_for
from disp.data.rows_inside import declared, is_run, may_hold_rows
from disp.errors import DispError
from disp.words import shortened

# Files and folders below a folder that are looked at for data that were not read.
_MOST_ENTRIES = 1_000_000
# Files of a folder that are looked at to say what it may be.
_LOOKED_AT = 3000


def unread(given: Path, read: Iterable[Path]) -> tuple[str, ...]:
    """Files that hold rows or may do so and were not read, in a folder that was given; by their names there.

    Those are tables, tar files, JSON and zip files at any depth, also compressed in ways that are not read here, and
    what the head of a README.md there names as data. The folders of runs are passed over, and so are hidden ones and
    links. Of a file that was given those are named that are other parts of it: ``train-00001-of-00002.jsonl`` beside
    ``train-00000-of-00002.jsonl``.

    Args:
        given: the file or folder that the user named.
        read: the files that were read.
    """
    known = {file.resolve() for file in read}
    found: list[Path] = []
    others: list[str] = []
    if given.is_dir():
        seen = 0
        for folder, names in _walk(given, None):
            seen += len(names) + 1
            if seen > _MOST_ENTRIES:
                others.append(f"what else lies below {given.name} (more than {_MOST_ENTRIES:,} files)")
                break
            found += may_hold_rows(folder, names)
        named, elsewhere = declared(given)
        found += [file for file in named if file not in found]
        others += [f"{name} (in README.md)" for name in elsewhere]
    elif part := part_of(given.name):
        given = given.parent
        ((_, names),) = _walk(given, 0)
        found = [given / name for name in names if (other := part_of(name)) and other.of == part.of]
    left = {file.relative_to(given).as_posix() for file in found if file.resolve() not in known}
    return (*sorted(left), *others)


def tables_below(folder: Path) -> list[str]:
    """The folders in a folder that hold parquet files, tar files, or an image folder's metadata."""
    return [each.name for each, names in _walk(folder, 1) if each != folder and any(map(_is_table, names))]


def nothing_in(folder: Path, others: Sequence[Path], below: Sequence[str]) -> DispError:
    """What is said of a folder of which no data file is plainly the dataset.

    Args:
        folder: the folder.
        others: the JSON files in it.
        below: the folders in it that hold tables.
    """
    if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return DispError(f"{folder} holds a model and no data; commands take the model first and the data behind it")
    if below:
        names = shortened(", ".join(below), 200)
        return DispError(f"{folder} holds no data itself; give one of the folders in it that do: {names}")
    if not others and (pair := _pair_in(folder)):
        return DispError(
            f"{folder} holds pictures and their texts in files of their own, such as {pair.name}; pack them as "
            f"img2dataset does by default: tar --sort=name -cf {pair.parent.name}.tar {pair.parent.name}"
        )
    names = f" ({shortened(', '.join(file.name for file in others), 200)})" if others else ""
    lines = [file for file in others if file.name.endswith((".jsonl", ".ndjson"))]
    joined = ", or join its parts (cat PARTS > data.jsonl)" if len(lines) > 1 else ""
    remedies = ((name, remedy_for(name)) for name in sorted(each.name for each in folder.iterdir() if each.is_file()))
    known = next((f"; {shortened(name)}: {remedy}" for name, remedy in remedies if remedy), "") if not others else ""
    return DispError(
        f"{folder} must hold exactly one of data.json and data.jsonl, found 0; give the data file itself{names}"
        f"{joined}, or a folder with parquet or tar files, metadata.jsonl, or dataset_info.json{known}"
    )


def _is_table(name: str) -> bool:
    arrow = name.endswith(".arrow") and not name.startswith("cache-")  # which `datasets` makes for itself
    return name.endswith(".parquet") or arrow or webdataset.is_shard_name(name) or name in image_folder.NAMES


def _pair_in(folder: Path) -> Path | None:
    """A picture in a folder, or in one in it, that a text of the same name lies beside."""
    for part, files in _walk(folder, 1):
        names = [name.rpartition(".") for name in files[:_LOOKED_AT]]
        stems = {stem for stem, _, suffix in names if suffix.lower() in (*CAPTIONS, "json")}
        for stem, point, suffix in names:
            if suffix.lower() in PICTURES and stem in stems:
                return part / f"{stem}{point}{suffix}"
    return None


def _walk(top: Path, depth: int | None) -> Iterator[tuple[Path, list[str]]]:
    """A folder and those in it as deep as is said, each with the names of its files; no runs, hidden ones or links.

    Args:
        top: the folder.
        depth: how deep; None for all.
    """
    waiting = [(top, 0)]
    while waiting:
        folder, level = waiting.pop()
        files, folders = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if level != depth and entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    elif entry.is_file():
                        files.append(entry.name)
        except OSError:  # not to be opened by this user, so that no trainer of theirs reads it either
            continue
        if folder == top or not is_run(folder, files):
            yield folder, sorted(files)
            waiting += ((folder / name, level + 1) for name in sorted(folders, reverse=True))
