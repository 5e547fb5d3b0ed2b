"""Finding out what a path holds: which files, and how rows lie in them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from disp.data.beside import nothing_in, tables_below
from disp.data.dataset import Source
from disp.data.formats import arrow, hub, image_folder, json_parts, llama_factory, webdataset
from disp.data.formats.dialects import is_row
from disp.data.formats.json_files import is_json_name, json_layout
from disp.data.formats.splits import chosen, no_split, of_split, splits_of
from disp.data.formats.table import FILES, FORMATS, format_of
from disp.data.other_files import remedy_for
from disp.data.remote import local_copy
from disp.data.rows_inside import holds_rows
from disp.errors import DispError
from disp.words import shortened

# Names of a data file that this library writes, and of the folder of a format that has no single file.
DATA_FILES = ("data.json", "data.jsonl", "data.json.gz", "data.jsonl.gz", "data.parquet")
DATA_FOLDER = "data"


@dataclass(frozen=True)
class Located:
    """Where a dataset lies.

    Attributes:
        path: its file, or the folder with its files.
        source: how it is read.
        given: what the user named, on this machine.
    """

    path: Path
    source: Source
    given: Path


def locate(path: Path, format: str | None = None, split: str | None = None) -> Located:
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
            copy = hub.fetch(str(path), split)
            return Located(*_folder(copy, None), copy)
        raise DispError(f"{shortened(str(path), 300)}: no such data file")
    found = Located(*(_folder(path, split, format) if path.is_dir() else _file(path, split)), path)
    if found.path.is_dir() and found.source.entry is None and found.source.files in ("parts", "parquet"):
        if entry := llama_factory.entry_of(found.path):  # a folder that is declared in one around it
            declared = llama_factory.declared(entry[1])
            found = replace(found, source=replace(found.source, declared=declared, entry=entry))
    if files is not None and found.source.files != files:
        raise _no_such(path, format)
    if format == "llama-factory" and found.source.entry is None:
        raise DispError(f"{path}: no {llama_factory.INFO} beside it that names it as file_name; add its entry")
    return found


def _no_such(path: Path, format: str | None) -> DispError:
    return DispError(f"{path} is no dataset of the format {format!r}: {FORMATS[format or ''].title}")


def _file(path: Path, split: str | None = None) -> tuple[Path, Source]:
    """A file; with a split it is to be of that one."""
    if path.name == llama_factory.INFO:
        return _folder(path.parent, split, "llama-factory")
    if path.name in image_folder.NAMES:
        if split not in (None, path.absolute().parent.name):
            raise no_split(path, split or "", [])
        return path, Source("imagefolder")
    chosen(path, [path], split)
    entry = llama_factory.entry_of(path)
    known = llama_factory.declared(entry[1]) if entry else None
    if is_json_name(path.name):
        layout = json_layout(path, known.matches if known else is_row)
        return path, Source(layout, known, entry)
    if path.suffix == ".parquet":
        if path.name == "metadata.parquet" and image_folder.tells_of_files(arrow.columns(path)):
            raise DispError(
                f"{path} tells of the pictures of an image folder, which is read from metadata.jsonl or metadata.csv; "
                "write its rows as one of them beside it"
            )
        return path, Source("parquet", known, entry)
    if webdataset.is_shard_name(path.name):
        return path, Source("webdataset")
    remedy = remedy_for(path.name)
    raise DispError(
        f"{path}: a dataset is a .json or .jsonl file, a .parquet, .tar or .tar.gz file, a metadata.csv, or a folder "
        f"with one{f'; {remedy}' if remedy else ''}"
    )


def _folder(path: Path, split: str | None, format: str | None = None, inner: bool = False) -> tuple[Path, Source]:
    """What of a folder is the dataset; what another format than the one asked for would be is passed over.

    Args:
        path: the folder.
        split: the one asked for.
        format: the one asked for.
        inner: whether it is named by a dataset_info.json, so that another one in it says nothing.
    """
    files = format_of(format).files if format else None
    if format == "llama-factory" and (found := _declared(path, split)):
        return found
    named = [path / name for name in DATA_FILES if (path / name).is_file() and _may_be(name, files)]
    if len(named) == 1:
        return _file(named[0], split)
    if named:
        raise DispError(f"{path} must hold exactly one of data.json and data.jsonl, found {len(named)}")
    if files in (None, "huggingface") and (path / "state.json").is_file():
        return _saved(path, split)
    if files in (None, "huggingface") and (path / "dataset_dict.json").is_file():
        return _dataset_dict(path, split)
    if not inner and files in (None, "parquet") and (found := _declared(path, split)):
        return found
    if files in (None, "imagefolder") and (metadata := _metadata(path, split)):
        return metadata, Source("imagefolder")
    for part in (path, path / DATA_FOLDER):
        if found := _tables(part, split, files):
            return found
    if (path / DATA_FOLDER).is_dir() and path.name != DATA_FOLDER:
        return _folder(path / DATA_FOLDER, split, format, inner)
    others = [file for file in sorted(path.iterdir()) if is_json_name(file.name) and file.is_file()]
    others = others if files is None else []
    below = tables_below(path)
    if split and others:
        chosen(path, others, split)
    parts = of_split(others, split or ("train" if len(others) > 1 and "train" in splits_of(others) else None))
    if len(parts) == 1:
        return _file(parts[0])
    if json_parts.is_whole(parts):
        return path, Source("parts", split=split or ("train" if len(others) > len(parts) else None))
    if not parts and (found := _tables(path / (split or "train"), None, files) if split in (None, *below) else None):
        return found
    if split and below:
        raise no_split(path, split, below)
    if files is not None:
        raise _no_such(path, format)
    raise nothing_in(path, others, below)


def _may_be(name: str, files: str | None) -> bool:
    """Whether a data file may hold rows of a format; the rows of those that name no kind of files lie in any."""
    return files is None or (files == "parquet" and name.endswith(".parquet"))


def _declared(path: Path, split: str | None) -> tuple[Path, Source] | None:
    """The file or folder that LLaMA-Factory's dataset_info.json names; None where it names none."""
    entries = llama_factory.read_info(path)
    if not entries:
        return None
    info = path / llama_factory.INFO
    if len({llama_factory.file_of(path, entry) or entry["file_name"] for entry in entries.values()}) > 1:
        names = shortened(", ".join(entry["file_name"] for entry in entries.values()), 200)
        raise DispError(f"{info} names several files: {names}; give one of them")
    name, entry = next(iter(entries.items()))
    told = entry["file_name"]
    target, tidy = llama_factory.file_of(path, entry), os.path.normpath(told)
    if target in (path.resolve(), info.resolve()):
        raise DispError(
            f"{info} names {shortened(told)!r} as its data file, which holds no rows; name the file that does"
        )
    file = path / tidy
    # Behind a link ".." leads elsewhere than it says.
    astray = ".." in Path(told).parts and file.resolve() != target
    if target is None or not os.path.exists(file) or astray or tidy.startswith("..") or not file.is_relative_to(path):
        raise DispError(
            f"{info} names {shortened(told)!r}, which is not in its folder; put it there, or put {llama_factory.INFO} "
            "where the data file is"
        )
    if not file.is_dir():
        return _file(file, split)
    found, source = _folder(file, split, inner=True)
    if (other := llama_factory.entry_of(file)) is not None:
        name, entry = other
    return found, replace(source, declared=llama_factory.declared(entry), entry=(name, entry))


def _tables(folder: Path, split: str | None, files: str | None) -> tuple[Path, Source] | None:
    """The parquet files or the tar files of a folder; None where it has none.

    Raises:
        DispError: it has both, and nothing tells which is meant.
    """
    if not folder.is_dir():
        return None
    parquet = arrow.parquet_files(folder) if files in (None, "parquet") else []
    tars = webdataset.shards(folder) if files in (None, "webdataset") else []
    if parquet and tars:
        if not _describe(parquet, tars):
            raise DispError(
                f"{folder} holds parquet files and tar files; say which are the dataset with --format parquet or "
                "--format webdataset"
            )
        parquet = []
    if parquet:
        part = chosen(folder, parquet, split, loose=True)
        return (parquet[0], _file(parquet[0])[1]) if len(parquet) == 1 else (folder, Source("parquet", split=part))
    if not tars:
        return None
    if files is None and (other := _with_rows(folder)):
        raise DispError(f"{folder} holds tar files and rows in {other.name}; give the one that is the dataset")
    return folder, Source("webdataset", split=chosen(folder, tars, split, loose=True))


def _describe(parquet: list[Path], tars: list[Path]) -> bool:
    """Whether tables only tell of tar files, as img2dataset writes 00000.parquet beside 00000.tar."""
    stems = {file.name.removesuffix(".gz").rpartition(".")[0] for file in tars}
    if not {file.stem for file in parquet} <= stems:
        return False
    try:
        first = next(FILES["parquet"].rows(parquet[0], Source("parquet")), None)
    except DispError:  # also where pyarrow is not there; what is not read is told either way
        return True
    return first is None or not is_row(first.value)


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
    found = sorted(each for each in folder.iterdir() if is_json_name(each.name) and each.is_file())
    return next(filter(holds_rows, found), None)


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
