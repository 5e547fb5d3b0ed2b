"""The fields of a row whose names or values look as if they were about a picture, a video or a sound."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

from disp.data.formats.names import is_file_name, is_moving_bytes, is_picture_bytes, is_picture_text
from disp.data.formats.row import LONGEST_WORD, Fields, is_nan

# Parts of a key that is about pictures, also within a longer word.
_PARTS = re.compile(r"image|img|picture|photo|pixel|video|audio|sampling_rate", re.IGNORECASE)
_NOUN = re.compile(r"(?:image|img|picture|photo|pixel|video|audio)s?")
# Words for pictures that are parts of other words too.
_WORDS = frozenset(
    "pic pics media fig figure figures screenshot screenshots thumbnail scan scans frame frames keyframe keyframes "
    "jpg jpeg png webp mp4 wav mp3".split()
)
# Two words that mean something else together.
_OTHERWISE = frozenset({("social", "media"), ("mass", "media"), ("time", "frame"), ("data", "frame")})
# Words for what is shown beside a picture.
_BESIDE = frozenset({"mask", "masks", "depth", "segmentation"})
# What a key ends with that names or holds a picture; "image_source" and "image_width" tell something of one.
_NAMES = re.compile(
    r"(?:id|ids|idx|index|path|paths|file|files|filename|filenames|name|names|url|urls|uri|uris|src|link|links|ref|key"
    r"|bytes|blob|data|content|contents|value|values|array|raw|base|hex|string|str)"
)
_NUMBERS = frozenset({"id", "ids", "idx", "index"})
# Keys that hold a picture or a sound as numbers.
_AS_NUMBERS = re.compile(r"pixel_?values?|pixels?|sampling_?rate", re.IGNORECASE)
_BARE = re.compile(r"(?:image|img|picture|photo|pic|video|audio)(s)?[\W_\d]*", re.IGNORECASE)
# What a key begins with that counts or tells, and names nothing.
_TELLS = frozenset({"n", "num", "number", "max", "min", "total", "count", "has", "have", "is", "with", "use", "needs"})
# What an object that is a picture has beside its name.
_TOLD = frozenset(
    "width height size sizes type kind format mode quality caption captions alt title source license description text "
    "label category split dataset score date author language".split()
)
# Fields that say what something is.
_KINDS = ("type", "kind", "modality", "media_type", "mime_type")
# Fields with what is to be said, in which the name of a file is a word.
_SAID = frozenset(
    "option options choice choices candidate candidates answer answers solution ground_truth groundtruth gt label "
    "labels target targets".split()
)
# Where an object keeps the picture that its own field is called after, as in {"mask": {"bytes": …, "path": …}}.
_HOLDS = ("bytes", "path")
Strength = Literal["names", "tells"]


@dataclass(frozen=True)
class Pointer:
    """A value that looks like a picture, or like the name of one.

    Attributes:
        key: the field that it is in; of ``{"bytes": …}`` the field with that object.
        value: text, bytes or a number.
        pictured: whether this field or one around it is called as pictures are.
        beside: whether it is called as what is shown beside a picture is, such as a mask.
        said: whether it is in a field with answers, in which a file's name is a word.
    """

    key: str
    value: Any
    pictured: bool
    beside: bool
    said: bool


@dataclass(frozen=True)
class _Around:
    key: str = ""
    strength: Strength | None = None
    beside: bool = False
    said: bool = False
    listed: bool = False


def pointers(row: Fields) -> Iterator[Pointer]:
    """Whatever looks like a picture, or like the name of one, in the order of the row; rows may be nested at will."""
    waiting: list[tuple[Any, _Around]] = [(row, _Around())]
    while waiting:
        value, around = waiting.pop()
        if isinstance(value, dict):
            holds = _HOLDS if "bytes" in value and around.key else ()
            parts = [(each, around.key if name in holds else str(name)) for name, each in value.items()]
            waiting.extend((each, _within(around, name)) for each, name in reversed(parts))
        elif isinstance(value, list | tuple):  # an entry of a table's map is a tuple
            inside = around if around.listed else replace(around, listed=True)
            waiting.extend((each, inside) for each in reversed(value))
        elif _counts(value, around):
            yield Pointer(around.key, value, around.strength is not None, around.beside, around.said)


def is_about_media(key: str) -> bool:
    """Whether a key is about videos or sounds."""
    return re.search("video|audio|sampling_rate", key, re.IGNORECASE) is not None


def names_media(key: str) -> bool:
    """Whether a key says that a video or a sound is what is shown, and not where pictures come from."""
    words = _words(key)
    rest = [word for word in words if word not in ("video", "videos", "audio", "audios")]
    return len(rest) < len(words) and all(map(_NAMES.fullmatch, rest))


@lru_cache(256)
def _words(key: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", key[:LONGEST_WORD]))


@lru_cache(256)  # the rows of a set have the same keys
def _strength(key: str) -> Strength | None:
    """Whether a key names or holds pictures, or tells something of them; None where it is not about pictures."""
    words = _words(key)
    pairs = set(pairwise(words)) & _OTHERWISE
    apart = [word for word in words if not any(word in pair for pair in pairs)]
    if not _PARTS.search(key[:LONGEST_WORD]) and _WORDS.isdisjoint(apart):
        return None
    last = words[-1] if words else ""
    ends = last in _WORDS or re.search(f"{_NOUN.pattern}$", last) or _NAMES.fullmatch(last)
    joined = _PARTS.search(last) and re.search(f"{_NAMES.pattern}$", last)
    if _AS_NUMBERS.fullmatch(key) or ((ends or joined) and _TELLS.isdisjoint(words[:1])):
        return "names"
    return "tells"


def _within(around: _Around, name: str) -> _Around:
    """What is around a value in the field of this name."""
    own, words = _strength(name), _words(name)
    strength = own or around.strength
    last = words[-1] if words else ""
    if own is None and around.strength:  # {"thumbnail": {"file": "x"}} names one, and "width" there does not
        names = last not in _TOLD if around.strength == "names" else _NAMES.fullmatch(last)
        strength = "names" if names else "tells"
    return _Around(
        key=name,
        strength=strength,
        beside=around.beside or not _BESIDE.isdisjoint(words),
        said=around.said or name.lower() in _SAID,
    )


def _counts(value: Any, around: _Around) -> bool:
    """Whether a value looks like a picture or the name of one."""
    if isinstance(value, bytes):
        return is_picture_bytes(value) or is_moving_bytes(value) or (bool(value) and around.strength == "names")
    if isinstance(value, str):
        if not value:
            return False
        named = around.strength == "names" or (around.strength == "tells" and _is_place(value))
        return named or _is_picture(around.key, value)
    if not value or value == -1 or isinstance(value, bool) or is_nan(value) or around.strength is None:
        return False
    return _takes_numbers(around.key, listed=around.listed)


@lru_cache(256)
def _takes_numbers(key: str, *, listed: bool) -> bool:
    """Whether a number in a field, or in a list there, may be a picture's or a part of one; "photos: 3" counts some."""
    words = _words(key)
    bare = _BARE.fullmatch(key)
    several = bare is not None and bare[1] is not None
    named = bare is not None and (listed or not several)
    return bool(_AS_NUMBERS.fullmatch(key) or named or (words and words[-1] in _NUMBERS))


def _is_place(value: str) -> bool:
    return len(value) < LONGEST_WORD and re.search(r"[/\\]", value) is not None and not re.search(r"\s", value)


def _is_picture(key: str, value: str) -> bool:
    """Whether a text names a picture or is one, whatever its field is called."""
    kind = key.lower() in _KINDS and re.search(r"image|picture|photo|video", value[:100], re.IGNORECASE)
    return bool(kind or is_file_name(value) or is_picture_text(value) or value[:11].lower() == "data:image/")
