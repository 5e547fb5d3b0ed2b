"""Finding out what a path holds: which files, and how rows lie in them."""

from __future__ import annotations

import json
from pathlib import Path

from disp.data.dataset import Source
from disp.data.formats import arrow, hub, image_folder, llama_factory, webdataset
from disp.data.formats.dialects import is_row
from disp.data.formats.json_files import is_json_name, json_layout
from disp.data.formats.splits import chosen, no_split, of_split, splits_of
from disp.data.formats.table import FILES, FORMATS, format_of
from disp.data.remote import local_copy
from disp.errors import DispError
from disp.words import shortened

# Names of a data file that this library writes, and of the folder of a format that has no single file.
DATA_FILES = ("data.json", "data.jsonl", "data.json.gz", "data.jsonl.gz", "data.parquet")
DATA_FOLDER = "data"


def locate(path: Path, format: str | None = None, split: str | None = None) -> tuple[Path, Source]:
    """The data file or folder that a path stands for, and how it is read.

    Args:
        path: a file, a folder, a URL (see `disp.data.remote`), or a hub id.
        format: a name in `FORMATS`, where the content is not to decide.
        split: the part of the dataset, where it has several.

    Raises:
        DispError: there is no such file, or it is of no format that is read.
    """
    files = format_of(format).files if format else None
    try:
        exists = path.exists()
    except (OSError, ValueError):
        exists = False
    if not exists:
        if (copy := local_copy(path)) is not None:
            return locate(copy, format, split)
        # What begins with a folder of this machine is a mistyped path: no name of it goes to the network.
        if hub.is_hub_id(str(path)) and files in (None, "huggingface") and not path.parent.is_dir():
            return _folder(hub.fetch(str(path), split), None)
        raise DispError(f"{shortened(str(path), 300)}: no such data file")
    found = _folder(path, split) if path.is_dir() else _file(path, split)
    if files is not None and found[1].files != files:
        raise DispError(f"{path} is no dataset of the format {format!r}: {FORMATS[format or ''].title}")
    if format == "llama-factory" and found[1].entry is None:
        raise DispError(f"{path}: no {llama_factory.INFO} beside it that names it as file_name; add its entry")
    return found


def _file(path: Path, split: str | None = None) -> tuple[Path, Source]:
    """A file; with a split it is to be of that one."""
    if path.name == llama_factory.INFO:
        return _folder(path.parent, split)
    if path.name in image_folder.NAMES:
        if split not in (None, path.absolute().parent.name):
            raise no_split(path, split or "", [])
        return path, Source("imagefolder")
    chosen(path, [path], split)
    if is_json_name(path.name):
        entry = llama_factory.entry_of(path)
        known = llama_factory.declared(entry[1]) if entry else None
        layout = json_layout(path, known.matches if known else is_row)
        return path, Source(layout, known, entry)
    if path.suffix == ".parquet":
        return path, Source("parquet")
    if webdataset.is_shard_name(path.name):
        return path, Source("webdataset")
    raise DispError(
        f"{path}: a dataset is a .json or .jsonl file, a .parquet, .tar or .tar.gz file, a metadata.csv, or a folder "
        "with one"
    )


def _folder(path: Path, split: str | None) -> tuple[Path, Source]:
    found = [path / name for name in DATA_FILES if (path / name).is_file()]
    if len(found) == 1:
        return _file(found[0], split)
    if found:
        raise DispError(f"{path} must hold exactly one of data.json and data.jsonl, found {len(found)}")
    if (path / "state.json").is_file():
        return _saved(path, split)
    if (path / "dataset_dict.json").is_file():
        return _dataset_dict(path, split)
    if entries := llama_factory.read_info(path):
        if len(entries) > 1:
            names = shortened(", ".join(entry["file_name"] for entry in entries.values()), 200)
            raise DispError(f"{path / llama_factory.INFO} names several files: {names}; give one of them")
        (entry,) = entries.values()
        file = path / entry["file_name"]
        if not file.is_file() or file.parent != path:
            raise DispError(f"{path / llama_factory.INFO} names {entry['file_name']!r}, which is not in its folder")
        return _file(file, split)
    if metadata := _metadata(path, split):
        return metadata, Source("imagefolder")
    for part in (path, path / DATA_FOLDER):
        if parquet := arrow.parquet_files(part) if part.is_dir() else []:
            part_read = chosen(part, parquet, split)
            if len(parquet) == 1:
                return parquet[0], Source("parquet")
            return part, Source("parquet", split=part_read)
        if tars := webdataset.shards(part) if part.is_dir() else []:
            if other := _with_rows(part):
                raise DispError(f"{part} holds tar files and rows in {other.name}; give the one that is the dataset")
            return part, Source("webdataset", split=chosen(part, tars, split, loose=True))
    if (path / DATA_FOLDER).is_dir() and path.name != DATA_FOLDER:
        return _folder(path / DATA_FOLDER, split)
    others = [file for file in sorted(path.iterdir()) if is_json_name(file.name) and file.is_file()]
    if split and others:
        chosen(path, others, split)
    named = of_split(others, split or ("train" if len(others) > 1 and "train" in splits_of(others) else None))
    if len(named) == 1:
        return _file(named[0])
    if any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise DispError(f"{path} holds a model and no data; commands take the model first and the data behind it")
    names = f" ({shortened(', '.join(file.name for file in others), 200)})" if others else ""
    raise DispError(
        f"{path} must hold exactly one of data.json and data.jsonl, found 0; give the data file itself{names}, or a "
        "folder with parquet or tar files, metadata.jsonl, or dataset_info.json"
    )


def _metadata(folder: Path, split: str | None) -> Path | None:
    """The metadata of a folder of pictures, or of that of the split."""

    def in_folder(part: Path) -> Path | None:
        return next((part / name for name in image_folder.NAMES if (part / name).is_file()), None)

    if split is None:
        return in_folder(folder) or in_folder(folder / "train")
    if (own := in_folder(folder)) is not None:
        if split == folder.absolute().name:
            return own
        raise no_split(folder, split, [])
    if Path(split).name != split or (found := in_folder(folder / split)) is None:
        parts = sorted(part.name for part in folder.iterdir() if part.is_dir() and in_folder(part))
        if parts:
            raise no_split(folder, split, parts)
        return None
    return found


def _with_rows(folder: Path) -> Path | None:
    """A JSON file with rows beside tar files, which may hold the pictures of these."""
    for file in sorted(each for each in folder.iterdir() if is_json_name(each.name) and each.is_file()):
        try:
            layout = json_layout(file, is_row)
            first = next(FILES[layout].rows(file, Source(layout)), None)
        except DispError:
            continue
        if first is not None and is_row(first.value):
            return file
    return None


def _dataset_dict(path: Path, split: str | None) -> tuple[Path, Source]:
    try:
        splits = json.loads((path / "dataset_dict.json").read_bytes())["splits"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        splits = None
    if not isinstance(splits, list) or not all(isinstance(name, str) and Path(name).name == name for name in splits):
        raise DispError(f"{path / 'dataset_dict.json'} does not list the splits; save the dataset again")
    part = split or (splits[0] if len(splits) == 1 else "train")
    if part not in splits:
        raise DispError(f"{path} has the splits {', '.join(splits)}; choose one with --split")
    return path / part, Source("huggingface", split=part)


def _saved(folder: Path, split: str | None) -> tuple[Path, Source]:
    """A folder of `save_to_disk`, which is of one split and may say of which."""
    if split is not None:
        try:
            own = json.loads((folder / "state.json").read_bytes())["_split"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            own = None
        if split not in (own, folder.absolute().name):
            raise no_split(folder, split, [own] if isinstance(own, str) else [])
    return folder, Source("huggingface")
