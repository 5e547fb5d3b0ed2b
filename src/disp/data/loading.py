"""Reading a dataset of any format; see `disp.data.formats.table`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from sys import intern
from typing import Any

from disp.data.beside import unread
from disp.data.dataset import Dataset, Problem, Source
from disp.data.formats.dialects import DIALECTS, dialect_of
from disp.data.formats.forms import check_one_form
from disp.data.formats.names import is_no_picture
from disp.data.formats.row import (
    PICTURE_FIELDS,
    BadRow,
    Dialect,
    Fields,
    Row,
    id_of,
    is_deeper,
    is_nan,
    is_number,
    origin_of,
)
from disp.data.formats.splits import other_parts
from disp.data.formats.table import FILES, FORMATS
from disp.data.formats.unseen import check_seen
from disp.data.locate import DATA_FOLDER, locate
from disp.data.plain import plain, without_nan
from disp.data.references import Embedded, Finder, NotFound
from disp.data.sample import IMAGE_PLACEHOLDER, Sample, Turn
from disp.data.stored import data_files
from disp.errors import DispError
from disp.words import shortened

# The columns of the tables that `disp.data.convert` writes, the last of which holds all other fields as JSON.
_TABLE = {"id", "images", "messages", "metadata"}
_NO_FIELDS: Mapping[str, Any] = {}  # of all rows without others, kept once
# No format nests its rows nearly as deep; what works on deeper ones runs out of Python's own depth.
_DEEPEST = 64
_NESTED = f"is nested more than {_DEEPEST} deep; take out the field that is"
# A reason is no longer than this: it is shown in a terminal, in JSON and in the report.
LONGEST_REASON = 500


def load_dataset(
    path: Path | str,
    image_root: Path | None = None,
    *,
    strict: bool = False,
    format: str | None = None,
    split: str | None = None,
    questions: bool = False,
    allow_download: bool = False,
    leave_out: Collection[str] = (),
) -> Dataset:
    """Read a dataset.

    Its format is found out from what it holds: LLaVA's JSON, ShareGPT, LLaMA-Factory, ms-swift, Qwen-VL, Hugging Face
    datasets, parquet, WebDataset, an image folder with metadata; see docs/data.md. Rows that cannot be used are set
    aside with their place and the reason, and so are those that name a picture in a way that is not understood. Where
    rows share an id, as several conversations about one picture do, the later ones are called ``id~2``, ``id~3`` and
    so on, and are written back under these names.

    Args:
        path: a data file, a folder that holds one, a URL of either that fsspec knows (see `disp.data.remote`), or the
            id of a dataset on the Hugging Face hub.
        image_root: folder that image names are relative to, and in which absolute names must lie; the folder ``images``
            beside the data file, or beside a folder ``data``, if there is one, otherwise the data's own folder, which
            is that of an image folder's metadata in any case. In a folder that is given links are followed, wherever
            they lead. A row whose name means two files that differ is set aside.
        strict: stop at the first bad row instead of setting it aside.
        format: a name in `disp.data.formats.table.FORMATS`, instead of finding it out.
        split: the part to read of a dataset that has several; "train" if not given.
        questions: take questions without an answer too, with "" as the answer.
        allow_download: fetch pictures that rows name by http or https. They are kept in the cache folder.
        leave_out: names of fields that are taken out of each row before it is looked at, and are not in what is written
            back. Those that a row had are in the ``left_out`` of the dataset's source.

    Raises:
        DispError: there is no such file, it is of no format that is read, none of its rows can be used, ``strict``
            met a bad one, or pictures that are members of tar files were to be left out.
    """
    located = locate(Path(path), format, split)
    path, source = located.path, located.source
    if source.files == "webdataset" and (named := next((name for name in PICTURE_FIELDS if name in leave_out), None)):
        raise DispError(f"{path}: {named!r} cannot be left out of tar files, whose pictures are members of their own")
    forced = FORMATS[format].dialect if format else None
    rows = folder = path if path.is_dir() else path.parent
    # Files of rows in a folder of their own, beside that of the pictures.
    if path.is_dir() and path.name == DATA_FOLDER and not (path / "images").is_dir():
        folder = path.parent if (path.parent / "images").is_dir() else path
    beside = folder.absolute() if image_root is None else None
    if image_root is None:
        # Names in metadata are relative to its own folder, for `datasets` too: "images" in it is no other place.
        own = source.files == "imagefolder" or not (folder / "images").is_dir()
        image_root = folder if own else folder / "images"
    if not image_root.is_dir():
        raise DispError(f"image folder {image_root} does not exist; give the folder that image names are relative to")
    finder = Finder(image_root.absolute(), beside, allow_download, rows.absolute())
    samples: list[Sample] = []
    problems: list[Problem] = []
    used: dict[str, int] = {}
    known: dict[str, str] = {}
    renamed = 0
    left_out: set[str] = set()
    counts: Counter[str] = Counter()
    for row in _without(FILES[source.files].rows(path, source), frozenset(leave_out), left_out):
        try:
            sample = _to_sample(row, source, forced, finder, questions, known, counts)
        except (BadRow, NotFound) as error:
            reason = shortened(str(error), LONGEST_REASON)
            if strict:
                raise DispError(f"{row.place}: {reason}") from None
            problems.append(Problem(row.place, reason))
            continue
        if sample.id in used:
            renamed += 1
            sample = replace(sample, id=_unused(sample.id, used))
        used[sample.id] = 1
        samples.append(sample)
    if not samples:
        first = f"; the first: {problems[0].place}: {problems[0].reason}" if problems else ""
        raise DispError(f"{path} holds no usable row ({len(problems)} set aside{first})")
    root = _common_root(samples, finder.image_root, folder.absolute())
    dataset = Dataset(
        samples=tuple(samples),
        path=path,
        image_root=root,
        problems=tuple(problems),
        renamed=renamed,
        source=replace(source, left_out=tuple(sorted(left_out))),
        linked=counts["linked"],
        nulled=counts["nulled"],
        unkept={key.partition(" ")[2]: count for key, count in counts.items() if key.startswith("unkept ")},
    )
    files = data_files(dataset)
    return replace(dataset, unread=unread(located.given, files), unread_parts=other_parts(file.name for file in files))


def _without(rows: Iterable[Row], names: frozenset[str], found: set[str]) -> Iterator[Row]:
    """The rows without the fields of these names; those that one had are noted in ``found``."""
    for row in rows:
        if names and isinstance(row.value, dict) and (there := names & row.value.keys()):
            found |= there
            row = replace(row, value={key: each for key, each in row.value.items() if key not in names})
        yield row


def _to_sample(
    row: Row,
    source: Source,
    forced: str | None,
    finder: Finder,
    questions: bool,
    known: dict[str, str],
    counts: Counter[str],
) -> Sample:
    fields, nulled = _fields(row, source)
    identity = id_of(fields, row.number)
    dialect: Dialect = DIALECTS[forced] if forced else source.declared or dialect_of(fields)
    content = dialect.read(fields, questions)
    number = next((key for key in dialect.reads(fields) if is_number(fields[key])), None)
    if number and not FILES[source.files].is_json:
        raise BadRow(
            f"{number!r} holds a number, in a column that cannot hold another answer; make it a column of text"
        )
    if content.pictures and all(is_no_picture(picture, finder) for picture in content.pictures):
        content = replace(content, pictures=())
    found = [finder.find(picture) for picture in content.pictures]
    check_seen(fields, content, [each.file for each in found], finder)
    check_one_form(fields, dialect, content)
    named = sum(turn.prompt.count(IMAGE_PLACEHOLDER) for turn in content.turns)
    if named > len(found):
        raise BadRow(
            f"{named} {IMAGE_PLACEHOLDER} placeholders for {len(found)} images; remove the surplus or add the images"
        )
    references = [each.reference for each in found]
    if any(isinstance(reference, Embedded) for reference in references):
        fields = dialect.write(fields, content.system, content.turns, list(references))
    # Copies: a path that was asked for its text, as to look whether it is there, keeps that text.
    files = tuple(Path(each.file) for each in found)
    # What many rows say is kept once, and so are the names of fields.
    turns = tuple(
        Turn(known.setdefault(turn.prompt, turn.prompt), known.setdefault(turn.response, turn.response))
        for turn in content.turns
    )
    metadata, unkept = _metadata(fields, dialect, source)
    counts.update(f"unkept {key}" for key in unkept)
    counts["nulled"] += nulled
    counts["linked"] += sum(each.linked for each in found)
    return Sample(
        id=identity,
        images=files,
        turns=turns,
        system=content.system,
        metadata=metadata or _NO_FIELDS,
        # The row itself is kept, so that it can be written back as it was.
        origin=origin_of(fields, turns, dialect=dialect, file=row.file, references=tuple(references), pictures=files),
    )


def _metadata(fields: Fields, dialect: Dialect, source: Source) -> tuple[dict[str, Any], list[str]]:
    """The fields that say nothing of the sample, and the names of those that JSON cannot hold.

    Those that a table of ours holds as JSON are taken out of it.
    """
    read = {"id", "__key__", *dialect.reads(fields)}
    other, unkept = {}, []
    for key, value in fields.items():
        if key not in read:
            try:
                other[key] = value if _is_json(value) else plain(value)
            except (TypeError, RecursionError):
                unkept.append(key)
    if not FILES[source.files].is_json and set(fields) <= _TABLE and isinstance(packed := other.get("metadata"), str):
        try:
            unpacked = json.loads(packed)
        except (ValueError, RecursionError):
            unpacked = None
        if isinstance(unpacked, dict) and not dialect.reads(unpacked) and "id" not in unpacked and _is_json(unpacked):
            other = unpacked
    return {intern(key): value for key, value in other.items()}, unkept


def _fields(row: Row, source: Source) -> tuple[Fields, bool]:
    """The fields of a row, and whether NaN among them was read as null."""
    value = row.value
    files = FILES[source.files]
    if isinstance(value, BadRow):
        raise value
    if isinstance(value, RecursionError):
        raise BadRow(_NESTED)
    if isinstance(value, Exception):
        raise BadRow(f"not valid JSON ({value})" if source.files in ("json", "lines", "parts") else str(value))
    if not isinstance(value, dict):
        raise BadRow(f"a row must be an object, found {type(value).__name__}")
    if is_deeper(value, _DEEPEST):
        raise BadRow(_NESTED)
    nulled = False
    if any(is_nan(value.get(key)) for key in PICTURE_FIELDS):  # "no picture", as pandas writes it
        value = {key: None if key in PICTURE_FIELDS and is_nan(each) else each for key, each in value.items()}
    if files.is_json and (error := _fault(value)):
        value, nulled = without_nan(value), True
        if error := _fault(value):
            # Half a character, an infinite number: read by lenient JSON, written by none.
            raise BadRow(f"cannot be written back: {_culprit(value)}{error}")
    return value, nulled


def _fault(value: Any) -> Exception | None:
    """Why JSON cannot hold a value; None if it can."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False, default=_bytes_as_text).encode()
    except (ValueError, TypeError, RecursionError) as error:
        return error
    return None


def _culprit(row: Fields) -> str:
    """The field that JSON cannot hold, for a message."""
    return next((f"{shortened(ascii(key))}: " for key, value in row.items() if _fault({key: value})), "")


def _bytes_as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return ""
    raise TypeError(f"{type(value).__name__} is not JSON")


def _is_json(value: Any) -> bool:
    """Whether a field can be kept as metadata: a table's columns may hold dates, numbers that JSON lacks, and bytes."""
    if value is None or isinstance(value, str | int):
        return True
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def _common_root(samples: Iterable[Sample], image_root: Path, folder: Path) -> Path:
    """The folder that names are relative to: the data's own where a picture lies in it and not in the image folder."""
    folders = {file.parent for sample in samples for file in sample.images if isinstance(file, Path)}
    beside = any(each.is_relative_to(folder) and not each.is_relative_to(image_root) for each in folders)
    return folder if beside and image_root.is_relative_to(folder) else image_root


def _unused(identity: str, used: dict[str, int]) -> str:
    """``identity~2`` or the next that is not taken; ``used`` counts how far it went, so that many are no matter."""
    while (name := f"{identity}~{used[identity] + 1}") in used:
        used[identity] += 1
    used[identity] += 1
    return name
