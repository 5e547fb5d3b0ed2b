"""Rows that name a picture in a way that is not understood: they must not pass as rows without it."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from disp.data.formats.names import (
    file_called,
    is_file_name,
    is_moving_bytes,
    is_moving_name,
    is_picture_bytes,
    is_picture_text,
    says_nothing,
    stem,
)
from disp.data.formats.pointers import Pointer, is_about_media, names_media, pointers
from disp.data.formats.row import BadRow, Content, Fields, leave_out
from disp.data.formats.tags import IsThere, media_in, picture_in, surplus
from disp.data.references import Finder
from disp.words import shortened

# Finds the file that a name means, None where there is none.
FileOf = Callable[[str], Path | None]

_MEDIA = ("video", "videos", "audio", "audios", "video_path", "audio_path")
_NOUN = r"(?:image|img|picture|photo)s?"
_ORDER = r"second|third|other|next|after|before|edited|target|output"
# Fields that stand beside "image" for a further picture, whether its file is there or not.
_FURTHER = re.compile(
    rf"(?:{_ORDER}|reference)[_ -]?{_NOUN}|{_NOUN}[_ -]?(?:(\d{{1,3}})|{_ORDER}|[b-h])", re.IGNORECASE
)
_TAKES_NONE = "which no model here takes; drop it"


def check_seen(row: Fields, content: Content, files: Sequence[Path], finder: Finder) -> None:
    """Make sure that no picture of a row stays unseen.

    Args:
        row: its fields.
        content: what was read of them.
        files: the pictures that were found.
        finder: finds the files of others that it may name.

    Raises:
        BadRow: the row is about a video or a sound, or something in it names a picture that was not read.
    """

    def is_there(name: str) -> bool:
        return file_called(name, finder) is not None

    for key in _MEDIA:
        if key in row and not _is_empty(row[key], is_there):
            kind = key.split("_")[0].removesuffix("s")
            raise BadRow(f"is about {'an' if kind == 'audio' else 'a'} {kind} ({key!r}), {_TAKES_NONE}")
    for turn in content.turns:
        if tag := media_in(turn.prompt, is_there):
            raise BadRow(
                f"looks as if it is about a video or a sound ({shortened(tag)}), which no model here takes; drop the "
                "row"
            )
    texts = {content.system or "", *(text for turn in content.turns for text in (turn.prompt, turn.response))}
    others = (each for each in pointers(row) if each.pictured or not _is_among(each.value, texts))
    if content.pictures:
        _check_others(row, others, content, files, partial(file_called, finder=finder))
        return
    for text in (content.system or "", *(turn.prompt for turn in content.turns)):
        if found := picture_in(text, is_there):
            raise BadRow(
                f"looks as if it names a picture by {shortened(found)!r} in its text, which is not understood, and has "
                "no picture; name it under 'image', with <image> in the text"
            )
    for pointer in others:
        key, value = pointer.key, pointer.value
        if _is_empty(value, is_there) or (_is_said(pointer) and not is_there(value)):
            continue
        if is_about_media(key) or _is_moving(value):
            raise BadRow(f"is about a video or a sound ({key!r}: {_shown(value)}), {_TAKES_NONE}")
        raise BadRow(
            f"has no picture, but {key!r} looks like one ({_shown(value)}); name it under 'image' or take the field out"
        )


def _check_others(
    row: Fields, others: Iterable[Pointer], content: Content, files: Sequence[Path], file_of: FileOf
) -> None:
    """Make sure that a row names no other pictures than those that were read.

    Pictures are moved and renamed, so a name by which no file is found tells how one was called before, but in fields
    that stand for a further picture. Names are compared without folder and suffix, because pictures are converted too.
    """
    held = [picture.get("bytes") if isinstance(picture, dict) else picture for picture in content.pictures]
    names = [picture.get("path") if isinstance(picture, dict) else picture for picture in content.pictures]
    stems = {stem(name) for name in names if isinstance(name, str) and is_file_name(name)}
    for pointer in others:
        key, value = pointer.key, pointer.value
        if value in held or value in names:
            continue
        if _is_moving(value) and (isinstance(value, bytes) or _is_shown(key, value, file_of)):
            raise BadRow(f"is about a video or a sound ({key!r}: {_shown(value)}), {_TAKES_NONE}")
        if _is_other(pointer, len(names), stems, files, file_of):
            raise BadRow(
                f"has another picture under {key!r} ({_shown(value)}), which is not looked at; name all pictures in "
                f"one field, or take this one out{f', as {leave_out(key)} does' if _is_in(value, row.get(key)) else ''}"
            )
    if found := surplus([turn.prompt for turn in content.turns], len(content.pictures)):
        raise BadRow(
            f"names a picture by {shortened(found)!r} in its text, but has {len(content.pictures)}; add the picture or "
            "take the tag out"
        )


def _is_other(pointer: Pointer, count: int, stems: set[str], files: Sequence[Path], file_of: FileOf) -> bool:
    """Whether a value is a picture, or names one, that is none of the ``count`` that were read."""
    value = pointer.value
    further = _stands_for_another(pointer.key, count)
    if isinstance(value, bytes):
        return further or is_picture_bytes(value)
    if not isinstance(value, str):
        return False
    if is_picture_text(value):
        return True
    if not (pointer.pictured or pointer.beside) or stem(value) in stems:
        return False
    if is_file_name(value) and (further or (pointer.beside and "://" not in value)):
        return True
    file = file_of(value)
    return file is not None and not any(_is_same(file, each) for each in files)


def _stands_for_another(key: str, count: int) -> bool:
    """Whether a field is called as that of a further picture is: "image2", "image_after"."""
    found = _FURTHER.fullmatch(key)
    return found is not None and (found[1] is None or int(found[1]) > count)


def _is_same(one: Path, other: Path) -> bool:
    """Whether two files are the same picture: one file, or one that was copied."""
    try:
        return one.samefile(other) or filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _is_empty(value: Any, is_there: IsThere) -> bool:
    """Whether a value says that there is nothing; a file that is called "none" is something."""
    if isinstance(value, dict | list):
        return all(_is_empty(each, is_there) for each in (value.values() if isinstance(value, dict) else value))
    return says_nothing(value) and not (isinstance(value, str) and is_there(value))


def _is_in(value: Any, field: Any) -> bool:
    """Whether a field of the row holds a value, which one of its name further down may hold as well."""
    if isinstance(field, dict | list):
        return any(_is_in(value, each) for each in (field.values() if isinstance(field, dict) else field))
    return bool(value == field)


def _is_among(value: Any, texts: set[str]) -> bool:
    """Whether a value is one of the texts that were read, which name a picture in other ways."""
    return isinstance(value, str) and value in texts


def _is_said(pointer: Pointer) -> bool:
    """Whether the name of a file is one of the answers to choose from, and no picture in itself."""
    return pointer.said and isinstance(pointer.value, str) and is_file_name(pointer.value)


def _is_moving(value: Any) -> bool:
    if isinstance(value, bytes):
        return is_moving_bytes(value)
    return isinstance(value, str) and is_moving_name(value)


def _is_shown(key: str, name: str, file_of: FileOf) -> bool:
    """Whether a video or a sound is shown beside pictures, and not what these were taken from."""
    return not re.search(r"\s|://", name) and (names_media(key) or file_of(name) is not None)


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return shortened(value if isinstance(value, str) else repr(value))
