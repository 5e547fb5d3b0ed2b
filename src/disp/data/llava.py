"""Reading and writing LLaVA-style JSON and JSONL with an image folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from disp.data.sample import IMAGE_PLACEHOLDER, Sample, Turn, pictures_sha256
from disp.errors import DispError
from disp.files import sha256, write_json, write_jsonl

USER_NAMES, ASSISTANT_NAMES = ("human", "user"), ("gpt", "assistant")
# Fields that a sample's own attributes hold; everything else is metadata.
OWN_FIELDS = ("id", "image", "images", "conversations", "messages")


@dataclass(frozen=True)
class Problem:
    """A row that was set aside: where it is, and why."""

    place: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """A data file with its image folder.

    Attributes:
        samples: the usable rows, in order.
        path: the data file.
        image_root: folder that image names are relative to.
        problems: the rows that were set aside.
        renamed: how many rows have an id that an earlier row has; see `load_dataset`.
    """

    samples: tuple[Sample, ...]
    path: Path
    image_root: Path
    problems: tuple[Problem, ...] = ()
    renamed: int = 0


class _BadRow(Exception):
    """Why a row cannot be used."""


def load_dataset(path: Path | str, image_root: Path | None = None, *, strict: bool = False) -> Dataset:
    """Read a LLaVA-style dataset.

    A row has ``conversations`` (``from``: human or gpt, ``value``) or ``messages`` (``role``, ``content``), ``image``
    or ``images`` (a name or a list of names), and an ``id``. Rows that cannot be used are set aside with their place
    and the reason. Where rows share an id, as several conversations about one picture do, the later ones are called
    ``id~2``, ``id~3`` and so on, and are written back under these names.

    Args:
        path: a .json array, a .jsonl file, or a folder that holds data.json or data.jsonl.
        image_root: folder that image names are relative to; the folder ``images`` beside the data file if there is
            one, otherwise the data file's own folder.
        strict: stop at the first bad row instead of setting it aside.

    Raises:
        DispError: there is no such file, it is not JSON, none of its rows can be used, or ``strict`` met a bad one.
    """
    path = _data_file(Path(path))
    if image_root is None:
        image_root = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
    if not image_root.is_dir():
        raise DispError(f"image folder {image_root} does not exist; give the folder that image names are relative to")
    image_root = image_root.absolute()
    samples: list[Sample] = []
    problems: list[Problem] = []
    used: dict[str, int] = {}
    renamed = 0
    for place, number, row in _rows(path):
        try:
            sample = _to_sample(row, number, image_root)
        except _BadRow as reason:
            if strict:
                raise DispError(f"{place}: {reason}") from None
            problems.append(Problem(place, str(reason)))
            continue
        if sample.id in used:
            renamed += 1
            sample = replace(sample, id=_unused(sample.id, used))
        used[sample.id] = 1
        samples.append(sample)
    if not samples:
        first = f"; the first: {problems[0].place}: {problems[0].reason}" if problems else ""
        raise DispError(f"{path} holds no usable row ({len(problems)} set aside{first})")
    return Dataset(tuple(samples), path, image_root, tuple(problems), renamed)


def save_dataset(samples: Sequence[Sample], path: Path, image_root: Path) -> None:
    """Write samples in the format that their rows had, as an array (.json) or as lines (.jsonl).

    Raises:
        DispError: an image is in memory or lies outside ``image_root``, or the suffix is another.
    """
    rows = [_to_row(sample, number, image_root.absolute()) for number, sample in enumerate(samples)]
    if path.suffix == ".json":
        write_json(path, rows)
    elif path.suffix == ".jsonl":
        write_jsonl(path, rows)
    else:
        raise DispError(f"{path}: a dataset is written as .json or .jsonl, not {path.suffix!r}")


def identity(dataset: Dataset) -> dict[str, str]:
    """What makes a dataset this one, for the file that says what a run folder holds."""
    return {
        "data_sha256": sha256(dataset.path),
        "images": str(dataset.image_root),
        "pictures_sha256": pictures_sha256({sample.id: sample.images for sample in dataset.samples}),
    }


def set_aside(dataset: Dataset, faults: Iterable[str | None], *, strict: bool, needed: str) -> Dataset:
    """The dataset without its faulty rows, which are among its ``problems``.

    Args:
        dataset: what was read.
        faults: for each sample what is wrong with it, None if nothing is.
        strict: stop at the first fault instead of setting the row aside.
        needed: what a row is to be, for the message where none is left.

    Raises:
        DispError: no row is left, or ``strict`` met a fault.
    """
    kept: list[Sample] = []
    problems = list(dataset.problems)
    for sample, fault in zip(dataset.samples, faults, strict=True):
        place = f"{dataset.path.name}:sample {sample.id!r}"
        if fault is None:
            kept.append(sample)
        elif strict:
            raise DispError(f"{place}: {fault}")
        else:
            problems.append(Problem(place, fault))
    if not kept:
        raise DispError(f"{dataset.path} holds no row {needed}; {problems[-1].reason}")
    return replace(dataset, samples=tuple(kept), problems=tuple(problems))


def _unused(identity: str, used: dict[str, int]) -> str:
    """``identity~2`` or the next that is not taken; ``used`` counts how far it went, so that many are no matter."""
    while (name := f"{identity}~{used[identity] + 1}") in used:
        used[identity] += 1
    used[identity] += 1
    return name


def _data_file(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in ("data.json", "data.jsonl") if (path / name).is_file()]
        if len(found) != 1:
            raise DispError(f"{path} must hold exactly one of data.json and data.jsonl, found {len(found)}")
        return found[0]
    if not path.is_file():
        raise DispError(f"{path}: no such data file")
    if path.suffix not in (".json", ".jsonl"):
        raise DispError(f"{path}: a dataset is a .json or .jsonl file, or a folder with data.json")
    return path


def _rows(path: Path) -> Iterator[tuple[str, int, Any]]:
    """Place, number from 0 and value of each row; a line that is not JSON has an exception for a value."""
    if path.suffix == ".jsonl":
        # Bytes, so that a line that is not UTF-8 is set aside like any other that is not JSON.
        with path.open("rb") as file:
            for number, line in enumerate(file):
                if line.strip():
                    try:
                        yield f"{path.name}:line {number + 1}", number, json.loads(line)
                    except (ValueError, RecursionError) as error:
                        yield f"{path.name}:line {number + 1}", number, error
        return
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DispError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(rows, list):
        raise DispError(f"{path} must hold a JSON array of rows, found {type(rows).__name__}")
    for number, row in enumerate(rows):
        yield f"{path.name}:row {number + 1}", number, row


def _to_sample(row: Any, number: int, image_root: Path) -> Sample:
    if isinstance(row, Exception):
        raise _BadRow(f"not valid JSON ({row})")
    if not isinstance(row, dict):
        raise _BadRow(f"a row must be an object, found {type(row).__name__}")
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:  # half a character, NaN: read by lenient JSON, written by none
        raise _BadRow(f"cannot be written back ({error})") from None
    identity = row.get("id", number)
    if not isinstance(identity, str | int):
        raise _BadRow("id must be text or a number")
    system, turns = _to_turns(row)
    if row.get("image") and row.get("images"):
        raise _BadRow("has both image and images; keep one of them")
    names = row.get(_image_key(row)) or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _BadRow("image must be a file name or a list of file names")
    images = tuple(_image_path(name, image_root) for name in names)
    named = sum(turn.prompt.count(IMAGE_PLACEHOLDER) for turn in turns)
    if named > len(images):
        raise _BadRow(
            f"{named} {IMAGE_PLACEHOLDER} placeholders for {len(images)} images; remove the surplus or add the images"
        )
    # The row itself is kept under one key, so that it can be written back as it was.
    metadata = {key: value for key, value in row.items() if key not in OWN_FIELDS}
    return Sample(str(identity), images, turns, system, {**metadata, "_row": row})


def _image_key(row: dict[str, Any]) -> str:
    """The field that names the images; tables exported with both fields leave one of them null or empty."""
    return "images" if row.get("images") or ("images" in row and not row.get("image")) else "image"


def _image_path(name: str, image_root: Path) -> Path:
    try:
        # Without "..", so that the name stays inside another root as well, when the images are copied there.
        path = image_root / os.path.normpath(name)
        inside = path.is_relative_to(image_root) and ".." not in path.relative_to(image_root).parts
        if not inside or not path.resolve().is_relative_to(image_root.resolve()):
            raise _BadRow(f"image {name!r} leaves the image folder {image_root}")
        if not path.is_file():
            raise _BadRow(f"image {name!r} does not exist in {image_root}")
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null character, links in a circle
        raise _BadRow(f"image {name!r} cannot be found ({error})") from None
    return path


def _to_turns(row: dict[str, Any]) -> tuple[str | None, tuple[Turn, ...]]:
    key, who, what = ("messages", "role", "content") if "messages" in row else ("conversations", "from", "value")
    messages = row.get(key)
    if not isinstance(messages, list) or not messages:
        raise _BadRow("no conversations")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get(what), str):
            raise _BadRow(f"every message of {key} needs {who!r} and text in {what!r}")
    system = None
    if messages[0].get(who) == "system":
        system, messages = messages[0][what], messages[1:]
    for index, message in enumerate(messages):
        expected = USER_NAMES if index % 2 == 0 else ASSISTANT_NAMES
        if message.get(who) not in expected:
            raise _BadRow(f"message {index + 1} is from {message.get(who)!r}, expected {expected[0]!r}")
    if not messages or len(messages) % 2:
        raise _BadRow("the conversation does not end with an answer")
    pairs = zip(messages[::2], messages[1::2], strict=True)
    return system, tuple(Turn(prompt[what], answer[what]) for prompt, answer in pairs)


def _to_row(sample: Sample, number: int, image_root: Path) -> dict[str, Any]:
    """The sample's row with its present id, system message, turns and images; a new row where it was read from none.

    Args:
        sample: what to write.
        number: number of the row from 0, which is the id of a row without one when it is read again.
        image_root: folder that image names are relative to.
    """
    names = []
    for source in sample.images:
        if not isinstance(source, Path) or not source.absolute().is_relative_to(image_root):
            raise DispError(f"sample {sample.id!r}: image {source} does not lie in the image folder {image_root}")
        names.append(source.absolute().relative_to(image_root).as_posix())
    row = dict(sample.metadata.get("_row") or {"id": sample.id, **sample.metadata, "conversations": []})
    if str(row.get("id", number)) != sample.id:  # rows were set aside before it, or it was renamed
        row["id"] = sample.id
    key = _image_key(row)
    if names:
        row[key] = names if isinstance(row.get(key), list) or len(names) > 1 else names[0]
    elif row.get(key):
        del row[key]
    chat = "messages" in row
    who, what = ("role", "content") if chat else ("from", "value")
    texts = [text for turn in sample.turns for text in (turn.prompt, turn.response)]
    old = row["messages" if chat else "conversations"]
    head = old[:1] if old and old[0].get(who) == "system" else []
    default = ("user", "assistant") if chat else ("human", "gpt")
    body = old[len(head) :] or [{who: name} for name in default]
    body += [{who: body[index % 2][who]} for index in range(len(body), len(texts))]
    row["messages" if chat else "conversations"] = [
        *([] if sample.system is None else [{**(head[0] if head else {who: "system"}), what: sample.system}]),
        *({**message, what: text} for message, text in zip(body, texts, strict=False)),
    ]
    return row
