"""Rows that name a picture in a way that is not understood: they must not pass as rows without one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from disp.data.formats.row import BadRow, Content, Fields, is_nan
from disp.words import shortened

_MEDIA = ("video", "videos", "audio", "audios", "video_path", "audio_path")
_MEDIA_TAG = re.compile(r"<(video|audio)>")
# How other models' rows name a picture in their text.
_TAG = re.compile(
    r"<img\b|</img>|<\|?(?:image|img|vision|picture)[\w|]*\d*\|?>|<ImageHere>|<IMG_CONTEXT>|!\[[^\]\n]*\]\([^)\n]+\)"
    r"|\[(?:IMG|image)\]"
    r"|data:image/"
)
_NAME = re.compile(
    r"[^\n]{0,400}\.(?:jpe?g|jfif|png|webp|gif|bmp|tiff?|heic|heif|avif|svg)(?:[?#][^\s]*)?|data:image/[^\n]*",
    re.IGNORECASE | re.DOTALL,
)
_KEY = re.compile(r"image|img|picture|photo|pixel|video|frames?$", re.IGNORECASE)
# Rows are not nested deeper than this in any format; what lies deeper is not looked through.
_DEPTH = 6


def check_seen(row: Fields, content: Content) -> None:
    """Make sure that no picture of a row stays unseen.

    Raises:
        BadRow: the row is about a video or a sound, or has no picture though something in it names one.
    """
    for key in _MEDIA:
        if row.get(key) and not is_nan(row[key]):
            raise BadRow(
                f"is about a {key.split('_')[0].removesuffix('s')} ({key!r}), which no model here takes; drop it"
            )
    texts = [content.system or "", *(text for turn in content.turns for text in (turn.prompt, turn.response))]
    for turn in content.turns:
        if tag := _MEDIA_TAG.search(turn.prompt):
            raise BadRow(f"is about a {tag[1]} ({tag[0]}), which no model here takes; drop the row")
    if content.pictures:
        return
    for turn in content.turns:
        if (tag := _TAG.search(turn.prompt)) and tag[0] != "<image>":
            raise BadRow(
                f"names a picture by {tag[0]!r} in its text, which is not understood, and has no picture; "
                "name it under 'image', with <image> in the text"
            )
    known = set(texts)
    for key, value in _named(row, "", 0):
        if isinstance(value, str) and value in known:
            continue
        shown = shortened(value if isinstance(value, str) else repr(value))
        raise BadRow(
            f"has no picture, but {key!r} looks like one ({shown}); name it under 'image' or take the field out"
        )


def _named(value: Any, key: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Field and value of whatever looks like a picture's name."""
    if isinstance(value, dict):
        for name, each in value.items() if depth < _DEPTH else ():
            yield from _named(each, str(name), depth + 1)
    elif isinstance(value, list):
        for each in value if depth < _DEPTH else ():
            yield from _named(each, key, depth + 1)
    elif isinstance(value, bytes):
        if value:
            yield key, f"{len(value)} bytes"
    elif isinstance(value, str):
        if value and (_KEY.search(key) or _NAME.fullmatch(value)):
            yield key, value
    elif value and not isinstance(value, bool) and not is_nan(value) and _KEY.search(key):
        yield key, value
