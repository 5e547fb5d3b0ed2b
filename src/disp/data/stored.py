"""The files that a dataset was read from: what they are, their hash, and that no run writes over them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from disp.data.dataset import Dataset
from disp.data.formats.arrow import arrow_files, parquet_files
from disp.data.formats.json_parts import parts
from disp.data.formats.webdataset import shards
from disp.data.index import Index
from disp.data.locate import DATA_FOLDER
from disp.data.sample import Sample, pictures_sha256
from disp.data.saving import data_path
from disp.errors import DispError
from disp.files import sha256


def data_files(dataset: Dataset) -> list[Path]:
    """The files that hold a dataset's rows; other files may lie in the same folder, and so may runs.

    Raises:
        DispError: a folder of `save_to_disk` does not name its files.
    """
    path, source = dataset.path, dataset.source
    if source is None or not path.is_dir():
        return [path]
    if source.files == "webdataset":
        return shards(path, source.split)
    if source.files == "parquet":
        return parquet_files(path, source.split)
    if source.files == "parts":
        return parts(path, source.split)
    if source.split and (path / "dataset_dict.json").is_file():  # as it was written, not as it was read
        path = path / source.split
    told = (path / "dataset_info.json", path / "state.json")
    return [*arrow_files(path), *(file for file in told if file.is_file())]


def data_sha256(dataset: Dataset) -> str:
    """The hash of a data file; of a folder that of the names and bytes of the files that are read as the dataset.

    Raises:
        DispError: see `data_files`.
    """
    if not dataset.path.is_dir():
        return sha256(dataset.path)
    digest = hashlib.sha256()
    for file in sorted(data_files(dataset)):
        digest.update(json.dumps([file.relative_to(dataset.path).as_posix(), sha256(file)]).encode())
    return digest.hexdigest()


def rows_sha256(samples: Iterable[Sample]) -> str:
    """The hash of what samples say, whatever they were read from: their ids, system messages, prompts and answers.

    The same file says other things where other columns of it are read (``dataset_info.json`` beside it names them).
    """
    said = hashlib.sha256()
    for sample in samples:
        turns = [(turn.prompt, turn.response) for turn in sample.turns]
        said.update(json.dumps([sample.id, sample.system, turns]).encode())
    return said.hexdigest()


def identity(dataset: Dataset, index: Index | None = None) -> dict[str, str]:
    """What makes a dataset this one, for the file that says what a run folder holds.

    Args:
        dataset: the dataset.
        index: of its samples, where there is one already.
    """
    return {
        "data_sha256": data_sha256(dataset),
        "rows_sha256": rows_sha256(dataset.samples),
        "images": str(dataset.image_root.resolve()),
        "pictures_sha256": pictures_sha256((index or Index(dataset.samples)).pictures),
        # Where there are none, runs from before there were such fields can be gone on with.
        **({"left_out": json.dumps(dataset.left_out)} if dataset.left_out else {}),
    }


def check_apart(dataset: Dataset, out: Path) -> None:
    """Make sure that a run's folder is not the dataset's own, so that nothing of the data is written over.

    A folder below that of the data is another one, and so is that of a run that is gone on with.

    Raises:
        DispError: it is.
    """
    path, folder = dataset.path.resolve(), out.resolve()
    own = path if path.is_dir() else path.parent
    target = data_path(dataset, out).resolve()
    around = own.name == DATA_FOLDER and not (dataset.source and dataset.source.files in ("json", "lines"))
    if folder == own or (around and folder == own.parent) or target == path or path.is_relative_to(target):
        raise DispError(
            f"{out} is the folder of the data, {dataset.path}, which must stay as it is; choose another folder"
        )


def check_pictures_apart(dataset: Dataset, folder: Path) -> None:
    """Make sure that a folder that is filled with pictures holds none of the dataset's own.

    Raises:
        DispError: it does.
    """
    inside = {image.parent for sample in dataset.samples for image in sample.images if isinstance(image, Path)}
    filled = folder.resolve()
    if any(each.resolve().is_relative_to(filled) for each in inside):
        raise DispError(
            f"{folder} holds pictures of {dataset.path}, which must stay as they are; choose another folder"
        )


def check_output(dataset: Dataset, out: Path, *others: Path) -> None:
    """Make sure that a file to be written is none of the dataset's, and does not lie in a folder that is read as one.

    Args:
        dataset: what was read.
        out: the file.
        others: further files that are read.

    Raises:
        DispError: it is one that is read, or lies there.
    """
    file = out.resolve()
    if any(file == each.resolve() for each in others):
        raise DispError(f"{out} is read by this command and must stay as it is; name another file")
    pictures = {image for sample in dataset.samples for image in sample.images if isinstance(image, Path)}
    if any(file == each.resolve() for each in data_files(dataset)) or (out.exists() and _is_any(out, pictures)):
        raise DispError(f"{out} is a file of the data, {dataset.path}, which must stay as it is; name another file")
    if file.parent == dataset.path.resolve():
        raise DispError(f"{out} lies in the folder of the data, {dataset.path}; name a file elsewhere")


def _is_any(file: Path, others: set[Path]) -> bool:
    return any(other.name == file.name and other.exists() and file.samefile(other) for other in others)
