"""Writing a dataset in the format that it was read in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from disp.data.dataset import Dataset
from disp.data.formats import llama_factory
from disp.data.formats.dialects import DIALECTS
from disp.data.formats.files import Files, Output
from disp.data.formats.row import Fields, Origin, id_of, origin_of
from disp.data.formats.table import FILES
from disp.data.references import reference_to
from disp.data.sample import Sample
from disp.errors import DispError
from disp.files import named_if_unwritable
from disp.words import shortened


def save_dataset(samples: Sequence[Sample], path: Path, image_root: Path, *, like: Dataset | None = None) -> None:
    """Write samples in the format that their rows had.

    Args:
        samples: what to write. A sample that was read from no row becomes a row of LLaVA's.
        path: the data file: an array (.json) or lines (.jsonl), either with .gz behind it, or parquet; or what
            `data_path` says for another format.
        image_root: folder that image names are relative to.
        like: the dataset that the samples come from, so that what is written is stored as that was: lines in a .json
            file, a folder of tables, tar files with all their members.

    Raises:
        DispError: an image is in memory or lies outside ``image_root``, or the suffix is another.
    """
    source = like.source if like else None
    files = FILES[source.files] if source else _files_of(path)
    outputs: Iterator[Output] = (
        _to_output(sample, number, image_root.absolute(), files) for number, sample in enumerate(samples)
    )
    if files.name == "imagefolder":
        outputs = _beside(outputs, samples, path.parent)
    files.save(path, outputs, (like.path, source) if like and source else None)
    if source:
        llama_factory.write_info(path, source)


def data_path(dataset: Dataset, out: Path) -> Path:
    """Where a set like this one lies in a run's folder: ``data.json``, or the folder ``data`` if it is many files."""
    source = dataset.source
    if source is None or source.files in ("json", "lines"):
        packed = ".gz" if dataset.path.suffix == ".gz" else ""
        suffix = Path(dataset.path.name.removesuffix(".gz")).suffix
        return out / f"data{'.jsonl' if suffix == '.ndjson' else suffix}{packed}"
    if source.files == "parquet" and dataset.path.is_file():
        return out / "data.parquet"
    return out / "data" / dataset.path.name if source.files == "imagefolder" else out / "data"


def link_images(dataset: Dataset, out: Path) -> None:
    """Let a set written to a run's folder find the pictures of the one that it comes from, by a link ``images``.

    There is none where the rows name no file in the image folder: they hold their pictures, or name them from the root
    of the file system. Where links are not to be had, readers name the folder.
    """
    root, source = dataset.image_root.resolve(), dataset.source
    files = (image for sample in dataset.samples for image in sample.images if isinstance(image, Path))
    laid_beside = source is not None and source.files == "imagefolder"
    if laid_beside or root == Path(root.anchor) or not any(file.is_relative_to(dataset.image_root) for file in files):
        return
    path = data_path(dataset, out)
    if path.is_dir():  # the folder of the rows, beside which readers look
        out = path / source.split if source and source.files == "huggingface" and source.split else path
    link = out / "images"
    if link.exists():
        return
    with suppress(OSError):
        link.unlink(missing_ok=True)  # a link to where the pictures were before they were moved
        link.symlink_to(root, target_is_directory=True)


def name_in(image_root: Path, picture: Path) -> Path:
    """A picture's name in the image folder; for one that its row holds itself, the name of its content."""
    return picture.relative_to(image_root) if picture.is_relative_to(image_root) else Path(picture.name)


def name_in_copy(image_root: Path, picture: Path) -> Path:
    """The same in a copy of the image folder that is called ``images``."""
    name = name_in(image_root, picture)
    if name.parts[0] != "images":
        return name
    # "images/0.jpg" in such a folder could be taken for "0.jpg" in it.
    folder = "images_"
    while (image_root / folder).exists():
        folder += "_"
    return Path(folder, *name.parts[1:])


def place(source: Path, target: Path) -> None:
    """Make a picture be there under another name too: as the same file, or as a copy on another file system."""
    if target.exists() and target.samefile(source):
        return
    with named_if_unwritable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # left by a killed run, with a trigger if that run chose other rows
        try:
            os.link(source.resolve(), target)  # what a symbolic link points to may not be there in the copy
        except OSError:  # another file system, or one without hard links
            shutil.copy2(source, target)


def _files_of(path: Path) -> Files:
    name = path.name.removesuffix(".gz")
    for suffix, files in ((".json", "json"), (".jsonl", "lines"), (".parquet", "parquet"), (".tar", "webdataset")):
        if name.endswith(suffix):
            return FILES[files]
    raise DispError(f"{path}: a dataset is written as .json or .jsonl, not {path.suffix!r}")


def _to_output(sample: Sample, number: int, image_root: Path, files: Files) -> Output:
    """The sample's row with its present id, system message, turns and images; a new row where it was read from none.

    Args:
        sample: what to write.
        number: number of the row from 0, which is the id of a row without one when it is read again.
        image_root: folder that image names are relative to.
        files: what it is written to.
    """
    origin = sample.origin
    if not isinstance(origin, Origin):
        fields: Fields = {"id": sample.id, **sample.metadata, "conversations": []}
        origin = origin_of(fields, (), dialect=DIALECTS["llava"])
    row, before = dict(origin.row), origin.references
    # Rows were set aside before it, or it was renamed. A table's columns stay as they are.
    if id_of(row, number) != sample.id and (files.is_json or isinstance(row.get("id"), str)):
        row["id"] = sample.id
    references: list[Any] = []
    for index, image in enumerate(sample.images):
        known = index < len(origin.pictures)
        references.append(
            reference_to(
                image,
                origin.pictures[index] if known else None,
                before[index] if known else None,
                image_root,
                f"sample {shortened(sample.id)!r}",
                linked=files.name != "imagefolder",
            )
        )
    changed = references != list(before)
    row = origin.dialect.write(row, sample.system, sample.turns, references if changed else None)
    return Output(row, origin.file, sample.id)


def _beside(outputs: Iterator[Output], samples: Sequence[Sample], folder: Path) -> Iterator[Output]:
    """Lay each picture where its row says, beside the file with the rows."""
    for output, sample in zip(outputs, samples, strict=True):
        names = output.row.get("images") or [output.row.get("image")]
        for name, image in zip(names, sample.images, strict=False):
            if isinstance(name, str) and isinstance(image, Path) and not os.path.isabs(name) and "://" not in name:
                place(image, folder / os.path.normpath(name))
        yield output
