"""WebDataset's tar files: the members of a sample share a name up to the first point. They may be packed with gzip."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from disp.data.dataset import Source
from disp.data.formats import tar_files
from disp.data.formats.dialects import dialect_of, is_row
from disp.data.formats.files import Files, Output, with_values
from disp.data.formats.json_files import value_of
from disp.data.formats.members import (
    CAPTIONS,
    OTHERS,
    PICTURES,
    SOME,
    Members,
    all_pictures,
    caption_field,
    json_field,
    kind_of,
    not_looked_at,
    not_text,
    pictures_shown,
    split_name,
    suffix_of,
    text_of,
)
from disp.data.formats.row import PICTURE_FIELDS, BadRow, Row
from disp.data.formats.splits import of_split
from disp.data.references import TEXTS, Embedded
from disp.errors import DispError
from disp.files import write_atomically

# Rows of a new shard.
SHARD_ROWS = 5_000
SUFFIXES = (".tar", ".tar.gz", ".tgz")
# What files are called that tell of the set.
_ABOUT = ("readme", "license", "licence", "notice", "citation", "changelog")


@dataclass(frozen=True)
class _Packed:
    """A sample as it lies in a shard.

    Attributes:
        key: what its members are called up to the first point.
        again: how many samples before it in the shard have this key.
        members: their content, by what they are called behind the point.
        fault: why it cannot be read; None if it can.
    """

    key: str
    again: int
    members: Members
    fault: str | None

    def file(self, shard: Path) -> str:
        """The shard's name, with `again` where the key alone does not tell which sample it is."""
        return f"{shard.name}/{self.again}" if self.again else shard.name


@dataclass(frozen=True)
class _Apart:
    """Pictures in samples without a text, whose texts may be samples without a picture.

    Attributes:
        picture: a member that shows something, None if there is none. One is enough: it tells that pictures and texts
            lie apart, as in ``s0/image.jpg`` and ``s0/text.json``, or with all pictures before all texts.
        nameless: keys of members without a suffix, which may show something.
    """

    picture: str | None
    nameless: frozenset[str]

    def of(self, key: str) -> str | None:
        """The member that may show what the sample of this key is about."""
        return self.picture or (key if key in self.nameless else None)


def shards(path: Path, split: str | None = None) -> list[Path]:
    """The file, or the tar files of a split in a folder in order of their names."""
    if not path.is_dir():
        return [path]
    return of_split(sorted(file for file in path.iterdir() if is_shard_name(file.name)), split)


def is_shard_name(name: str) -> bool:
    """Whether a file is called as a shard is."""
    return name.endswith(SUFFIXES) and not name.startswith(".")


def rows(path: Path, source: Source) -> Iterator[Row]:
    """One row for each sample of each shard: its JSON or its caption, with the pictures among its members.

    Raises:
        DispError: a shard cannot be read.
    """
    apart = cache(lambda: _pictures_apart(shards(path, source.split)))
    number = 0
    for shard in shards(path, source.split):
        for sample in _samples(shard):
            value: Any
            try:
                value, _ = _row(sample)
            except BadRow as error:
                value = error
            else:
                if not all_pictures(sample.members) and not any(value.get(name) for name in PICTURE_FIELDS):
                    if lost := apart().of(sample.key):
                        value = ValueError(
                            f"has no picture, while {lost[:200]} is one without text; the members of a sample are "
                            "neighbours and share their name up to the first point, as 0.jpg and 0.json do"
                        )
            yield Row(f"{shard.name}:sample {sample.key[:200]}", number, value, sample.file(shard))
            number += 1


def save(path: Path, outputs: Iterable[Output], like: tuple[Path, Source] | None = None) -> None:
    """Write shards: of the old names, with every member that was there, or new ones."""
    if like is None:
        _save_new(path, outputs)
        return
    olds = {shard.name: shard for shard in shards(like[0], like[1].split)}
    for name, group in groupby(outputs, key=lambda output: output.file.partition("/")[0]):
        write_atomically(path if path.suffix else path / name, partial(_rewrite, outputs=group, old=olds[name]))


def _rewrite(file: Path, outputs: Iterable[Output], old: Path) -> None:
    with tar_files.written(file, packed=tar_files.is_packed(old)) as tar:
        wanted = iter(outputs)
        output = next(wanted, None)
        for sample in _samples(old):
            if output is None:
                return
            if (output.row.get("__key__"), output.file) == (sample.key, sample.file(old)):
                for field, content in _changed(sample, output.row, old).items():
                    tar_files.add(tar, f"{sample.key}.{field}", content)
                output = next(wanted, None)
    if output is not None:
        raise _other(old)


def _other(old: Path) -> DispError:
    return DispError(f"{old} has changed since it was read; start again")


def _changed(sample: _Packed, row: Mapping[str, Any], old: Path) -> Members:
    """A sample's members with the row's texts and pictures."""
    members = sample.members
    try:
        read, is_caption = _row(sample)
    except BadRow:
        raise _other(old) from None
    new = dict(members)
    for picture in _embedded(row):
        if picture.name in new:
            new[picture.name] = picture.file.read_bytes()
    if (field := json_field(members)) is not None:
        before = json.loads(members[field])
        # What the reader put into the row; where the JSON has such fields, these keep what they told.
        added = ("__key__", *PICTURE_FIELDS, *(("text",) if is_caption else ()))
        after = {key: value for key, value in row.items() if key not in added}
        # Where the JSON names pictures, these are members, and keep their names; text that holds one is written.
        told = {
            key: before[key] if key == "text" else _told(row.get(key), before[key]) for key in added if key in before
        }
        after = {**after, **told}
        after = {key: after[key] for key in (*before, *after) if key in after}
        if after != before:
            new[field] = json.dumps(with_values(after, text=True), ensure_ascii=False).encode()
    if (caption := caption_field(members)) is not None:
        text = text_of(caption, members)
        said = row["text"] if is_caption else _copy(text, read, row)
        if said != text:
            new[caption] = said.encode()
    return new


def _told(new: Any, before: Any) -> Any:
    return new if any(picture.form in TEXTS for picture in _embedded(new)) else before


def _copy(text: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """A caption that says what an answer said before, with what the answer says now."""
    pairs = zip(_answers(before), _answers(with_values(after)), strict=True)
    return next((new for old, new in pairs if old.strip() == text.strip() and old != new), text)


def _answers(row: Mapping[str, Any]) -> list[str]:
    return [turn.response for turn in dialect_of(row).read(row, True).turns]


def _save_new(path: Path, outputs: Iterable[Output]) -> None:
    found = iter(enumerate(outputs))
    number = 0
    first = next(found, None)
    while first is not None:
        follows: list[tuple[int, Output]] = []

        def write(file: Path, first: tuple[int, Output] = first, follows: list[tuple[int, Output]] = follows) -> None:
            with tar_files.written(file, packed=file.name.endswith("gz")) as tar:
                _add_new(tar, *first)
                for index, output in found:
                    if index % SHARD_ROWS == 0:
                        follows.append((index, output))
                        return
                    _add_new(tar, index, output)

        write_atomically(path if path.suffix else path / f"shard-{number:06}.tar", write)
        first = follows[0] if follows else None
        number += 1


def _add_new(tar: tarfile.TarFile, index: int, output: Output) -> None:
    key = f"{index:08}"
    pictures = list(_embedded(output.row))
    for place, picture in enumerate(pictures):
        suffix = suffix_of(picture.file)
        name = f"{key}.{suffix}" if len(pictures) == 1 else f"{key}.{place}.{suffix}"
        tar_files.add(tar, name, picture.file.read_bytes())
    row = {name: value for name, value in output.row.items() if name not in PICTURE_FIELDS}
    tar_files.add(tar, f"{key}.json", json.dumps(row, ensure_ascii=False).encode())


def _samples(shard: Path) -> Iterator[_Packed]:
    """The samples of a shard; neighbours with the same key are members of one.

    Files whose names begin with a point, such as ._0.jpg and .DS_Store of a Mac, do not part neighbours: WebDataset's
    own reader passes them over, too.
    """
    seen: Counter[str] = Counter()
    shown = (member for member in tar_files.members(shard) if split_name(member.name)[0] and not _is_readme(member))
    for key, group in groupby(shown, key=lambda member: split_name(member.name)[0]):
        members: Members = {}
        faults: list[str] = []
        for member in group:
            field = split_name(member.name)[1]
            if member.fault:
                faults.append(member.fault)
            elif not field:
                faults.append(f"{member.name} has no suffix; a picture is called {SOME}")
            # WebDataset's own reader does not tell upper from lower case.
            elif field.lower() in map(str.lower, members):
                faults.append(f"has two members called {member.name}; keep one of them")
            else:
                members[field] = member.content
        yield _Packed(key, seen[key], members, faults[0] if faults else None)
        seen[key] += 1


def _is_readme(member: tar_files.Member) -> bool:
    """Whether a file tells of the set, such as README.md and LICENSE, and is text, so that it is no sample."""
    key, field = split_name(member.name)
    about = key.rpartition("/")[2].lower() in _ABOUT and field.lower() in ("", "md", "rst")
    return about and not member.fault and not_text({field: member.content}) is None


def _pictures_apart(found: Iterable[Path]) -> _Apart:
    picture, nameless = None, set()
    for shard in found:
        named = (name for name in tar_files.names(shard) if split_name(name)[0])
        for key, group in groupby(named, key=lambda name: split_name(name)[0]):
            kinds = {name: kind_of(split_name(name)[1]) for name in group}
            if not any(kind == "json" or kind in CAPTIONS for kind in kinds.values()):
                picture = picture or next((name for name, kind in kinds.items() if kind in (*PICTURES, *OTHERS)), None)
                nameless |= {key} if "" in kinds.values() else set()
    return _Apart(picture, frozenset(nameless))


def _row(sample: _Packed) -> tuple[dict[str, Any], bool]:
    """What a sample says, and whether its caption does so, not its JSON.

    Raises:
        BadRow: it cannot be read, or not without leaving something out.
    """
    members = sample.members
    if sample.fault:
        raise BadRow(sample.fault)
    field, caption = json_field(members), caption_field(members)
    if field is None and caption is None:
        raise BadRow(f"no member called json or txt, only {', '.join(sorted(members))[:200]}")
    if other := not_looked_at(members, {field, caption}):
        raise BadRow(
            f"{other[:200]} may be a picture or a row in a form that others read, and that is not read here; take it "
            f"out, or pack the sample with one picture called {SOME} and one json"
        )
    row = {} if field is None else value_of(members[field])
    if isinstance(row, BadRow):
        raise BadRow(f"{field} {row}")
    if isinstance(row, Exception):
        raise BadRow(f"{field} is not valid JSON ({row})")
    if not isinstance(row, dict):
        raise BadRow(f"{field} holds no object")
    row = _with_pictures(row, sample)
    if caption is None:
        return row, False
    text = text_of(caption, members)
    if not is_row(row):
        return {**row, "text": text}, True
    # img2dataset writes a caption twice, and trainers read either.
    if text.strip() and text.strip() not in (answer.strip() for answer in _answers(row)):
        raise BadRow(f"{caption} says something else than the answer in {field}; keep one of them")
    return row, False


def _with_pictures(row: dict[str, Any], sample: _Packed) -> dict[str, Any]:
    key, members = sample.key, sample.members
    known, pictures = all_pictures(members), pictures_shown(members)
    row["__key__"] = key
    if not known and (other := not_text(members)):
        raise BadRow(f"{other} is no text and no picture that is understood; a picture is called {SOME}")
    told = next((name for name in PICTURE_FIELDS if row.get(name)), None)
    # Readers that ask for "jpg;jpeg;png" take the first that there is, and show no other.
    plain = sorted(name for name in pictures if "." not in name)
    if told is None and len(plain) > 1:
        raise BadRow(
            f"has the pictures {' and '.join(f'{key}.{name}' for name in plain)[:200]}, of which readers take one; "
            f"name them in its JSON, or call the others {key}.1.{plain[0]} and so on"
        )
    if told is None and pictures:
        found = _listed(pictures)
        row.update({"image": found[0]} if len(found) == 1 else {"images": found})
    elif told:
        row[told] = _with_members(row[told], key, known)
        # A row that was packed as it was names its pictures as they were called before.
        old = row[told] if isinstance(row[told], list) else [row[told]]
        if all(isinstance(name, str) and not name.startswith("data:") for name in old):
            for meant in (pictures, known):
                if len(meant) == len(old) and len(plain) < 2:
                    row[told] = _listed(meant) if isinstance(row[told], list) else _listed(meant)[0]
                    break
        found = row[told] if isinstance(row[told], list) else [row[told]]
        named = [each.get("path") for each in found if isinstance(each, dict)]
        if unseen := next((name for name in sorted(pictures, key=_natural) if name not in named), None):
            raise BadRow(
                f"has the picture {key}.{unseen}, which {told!r} in its JSON does not name, so that it would not be "
                "looked at; name it there or take it out"
            )
    return row


def _listed(pictures: Members) -> list[dict[str, Any]]:
    return [{"bytes": pictures[name], "path": name} for name in sorted(pictures, key=_natural)]


def _with_members(value: Any, key: str, pictures: Members) -> Any:
    """The pictures that JSON names, with the bytes of the members that are meant."""
    if isinstance(value, list):
        return [_with_members(each, key, pictures) for each in value]
    if isinstance(value, str):
        name = value.rpartition("/")[2]
        field = name.removeprefix(f"{key.rpartition('/')[2]}.")
        if field in pictures:
            return {"bytes": pictures[field], "path": field}
    return value


def _natural(name: str) -> list[Any]:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _embedded(value: Any) -> Iterator[Embedded]:
    if isinstance(value, Embedded):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _embedded(each)
    elif isinstance(value, list):
        for each in value:
            yield from _embedded(each)


WEBDATASET = Files("webdataset", "tar files of WebDataset", rows, save, "", embeds=True)
