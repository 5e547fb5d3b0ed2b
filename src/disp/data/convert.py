"""Writing a dataset in another format."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disp.data.dataset import Dataset, Problem
from disp.data.formats.dialects import DIALECTS, LISTS
from disp.data.formats.files import Files, Output
from disp.data.formats.llama_factory import INFO
from disp.data.formats.row import BadRow
from disp.data.formats.table import FILES, FORMATS, Format
from disp.data.references import Embedded
from disp.data.sample import IMAGE_PLACEHOLDER, Sample, Turn
from disp.data.saving import name_in_copy, place
from disp.data.stored import check_pictures_apart
from disp.errors import DispError, unknown_name
from disp.files import check_unused, write_json
from disp.locks import alone
from disp.words import shortened

# The file or folder that a new dataset lies in.
_NAMES = {
    "json": "data.json",
    "lines": "data.jsonl",
    "parquet": "data.parquet",
    "huggingface": "data",
    "webdataset": "data",
    "imagefolder": "metadata.jsonl",
}
# The keys of a row of each dialect, before it is filled.
_KEYS: dict[str, dict[str, Any]] = {
    "llava": {"conversations": []},
    "sharegpt": {"messages": [], "images": []},
    "qwen-vl": {"conversations": [{"from": "user"}, {"from": "assistant"}]},
    "ms-swift": {"query": "", "response": "", "images": []},
    "alpaca": {"instruction": "", "input": "", "output": "", "images": []},
    "the-cauldron": {"images": [], "texts": []},
}
# What LLaMA-Factory is told about rows of role and content.
_ENTRY = {
    "file_name": "data.json",
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}


@dataclass(frozen=True)
class Converted:
    """A dataset in its new format.

    Attributes:
        path: the data file or folder.
        rows: how many rows it holds.
        problems: the rows that the format cannot hold, and why.
        dropped: the fields that it cannot hold, with the number of rows that have them.
    """

    path: Path
    rows: int
    problems: tuple[Problem, ...]
    dropped: Mapping[str, int]


def written_format(name: str) -> Format:
    """The format of this name.

    Raises:
        DispError: there is none, or it is only read.
    """
    written = {each: found for each, found in FORMATS.items() if found.writes}
    if name in FORMATS and name not in written:
        raise DispError(f"format {name!r} is only read; choose one of {', '.join(written)}")
    if name not in written:
        raise unknown_name("format", name, written)
    return written[name]


@alone
def convert(
    dataset: Dataset, format: str, out: Path, *, progress: Callable[[int], None] = lambda count: None
) -> Converted:
    """Write a dataset in another format, with its pictures.

    Pictures are put into the files where the format has them there; otherwise they lie in ``out``/images, as links to
    the same files or as copies. Other fields of the rows stay beside the conversation; in tables they are one column
    of JSON, ``metadata``. A picture without a placeholder gets one at the beginning of the first question.

    Args:
        dataset: what was read.
        format: a name in `disp.data.formats.table.FORMATS`.
        out: a folder without a dataset.
        progress: called with the number of rows finished.

    Raises:
        DispError: the format is unknown or is not written, ``out`` holds a dataset, a model or pictures of this one, a
            picture is in memory, or no row can be written.
    """
    target = written_format(format)
    assert target.writes is not None
    dialect, kind = target.writes
    files = FILES[kind]
    path = out / _NAMES[files.name]
    if path.exists():
        raise DispError(f"{path} exists; choose another folder")
    # A folder gets its name when it is whole; what a killed run left is written anew.
    unfinished = path if path.suffix else out / f".{path.name}-unfinished"
    if unfinished != path:
        shutil.rmtree(unfinished, ignore_errors=True)
    if _info(out) == {"data": _ENTRY}:
        (out / INFO).unlink()
    check_unused(out)
    if not files.embeds and (out / "images").resolve() != dataset.image_root.resolve():
        check_pictures_apart(dataset, out / "images")
    problems: list[Problem] = []
    count = 0

    def outputs() -> Iterator[Output]:
        nonlocal count
        for sample in dataset.samples:
            try:
                row = _row(sample, dataset, format, dialect, files, out)
            except BadRow as reason:
                problems.append(Problem(f"{dataset.path.name}:sample {shortened(sample.id)!r}", str(reason)))
            else:
                count += 1
                yield Output(row, "", sample.id)
            progress(1)

    first = next(found := outputs(), None)
    if first is None:
        raise DispError(f"{dataset.path} holds no row that {format!r} can hold; {problems[0].reason}")
    if format == "llama-factory":
        write_json(out / INFO, {"data": _ENTRY})
    files.save(unfinished, _chain(first, found), None)
    os.replace(unfinished, path)
    return Converted(path, count, tuple(problems), dataset.unkept)


def _info(out: Path) -> Any:
    """What LLaMA-Factory's file in a folder says, None if there is none."""
    try:
        return json.loads((out / INFO).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _chain(first: Output, rest: Iterator[Output]) -> Iterator[Output]:
    yield first
    yield from rest


def _row(sample: Sample, dataset: Dataset, format: str, dialect: str, files: Files, out: Path) -> dict[str, Any]:
    if files.name == "imagefolder" and not sample.images:
        raise BadRow("has no picture, and each row of an image folder is about one")
    if dialect == "the-cauldron" and sample.system is not None:
        raise BadRow("has a system message, for which the-cauldron has no place")
    pictures = [_picture(sample, source, dataset, format, files, out) for source in sample.images]
    turns = _with_placeholders(sample)
    if dialect == "the-cauldron":
        turns = _without_placeholders(turns)
    # What nothing is in would make a row of another form, where it is the list of that form.
    other = {key: value for key, value in sample.metadata.items() if value or key not in LISTS}
    taken = DIALECTS[dialect].reads({**other, **_KEYS[dialect]})
    if files.name in ("parquet", "huggingface"):
        taken = ()
        other = {"metadata": json.dumps(other, ensure_ascii=False)}
    if files.name == "imagefolder":
        taken = (*taken, "file_name", "file_names")
    if own := next((key for key in taken if other.get(key)), None):
        raise BadRow(f"has a field {own!r} of its own, which means something else in {format}; rename it")
    row = {"id": sample.id, **other, **_KEYS[dialect]}
    return DIALECTS[dialect].write(row, sample.system, turns, pictures)


def _picture(sample: Sample, source: Any, dataset: Dataset, format: str, files: Files, out: Path) -> Any:
    if not isinstance(source, Path):
        raise DispError(f"sample {sample.id!r} has a picture in memory; only pictures in files can be converted")
    name = name_in_copy(dataset.image_root, source).as_posix()
    if files.embeds:
        return Embedded(source, "dict", os.path.basename(name))
    place(source, out / "images" / name)
    # LLaVA's names are relative to the image folder, those of others to the dataset's.
    return name if format == "llava" else f"images/{name}"


def _with_placeholders(sample: Sample) -> tuple[Turn, ...]:
    missing = len(sample.images) - sum(turn.prompt.count(IMAGE_PLACEHOLDER) for turn in sample.turns)
    if missing <= 0:
        return sample.turns
    first = sample.turns[0]
    return (Turn(f"{IMAGE_PLACEHOLDER}\n" * missing + first.prompt, first.response), *sample.turns[1:])


def _without_placeholders(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns without the placeholders at their beginning, which the-cauldron does not write."""
    first = turns[0].prompt
    while first.startswith(IMAGE_PLACEHOLDER):
        first = first.removeprefix(IMAGE_PLACEHOLDER).lstrip("\n ")
    turns = (Turn(first, turns[0].response), *turns[1:])
    if any(IMAGE_PLACEHOLDER in turn.prompt for turn in turns):
        raise BadRow("has a picture in the middle of its text, which the format the-cauldron cannot hold")
    return turns
