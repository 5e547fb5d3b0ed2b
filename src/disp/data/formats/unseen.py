"""Rows that name a picture in a way that is not understood: they must not pass as rows without one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from disp.data.formats.row import BadRow, Content, Fields, is_nan
from disp.data.references import is_base64
from disp.data.sample import IMAGE_PLACEHOLDER
from disp.words import shortened

_MEDIA = ("video", "videos", "audio", "audios", "video_path", "audio_path")
_MEDIA_TAG = re.compile(r"<(video|audio)>")
_SUFFIXES = (
    r"\.(?:jpe?g|jpe|jfif|jp2|jxl|png|webp|gif|bmp|tiff?|heic|heif|avif|svg|ppm|pgm|tga|dcm|dicom|nii|nii\.gz|npy|npz)"
    r"(?:[?#][^\s]*)?"
)
# How other models' rows name a picture in their text: a word for it in brackets of some kind, or Markdown.
_TAG = re.compile(
    r"<img\b|</img>|<\|?(?:image|img|vision|picture)[\w|]*>|<ImageHere>|<IMG_CONTEXT>|!\[[^\[\]\n]{0,300}\]\([^)\n]{1,2000}\)"
    r"|data:image/|(?i:(?<!\w)(?:<|＜|&lt;)[\w\s|/.:#-]{0,24}?(?<![a-z])(?:images?|img|pictures?|photos?|vision|visual|media|frames?"
    r"|im_(?:start|end|patch)|[sbe]oi)(?![a-z])[\w\s|/.:#-]{0,24}(?:>|＞|&gt;)"
    r"|(?<!\w)\[\s*(?:image|img|picture|photo)[\s_#-]{0,9}\d{0,9}\s{0,9}\]|\{\{?\s*(?:image|img|picture|photo)_?\d*\s*\})"
)
# A line of a question that begins or ends with a picture's place.
_PLACE = re.compile(rf"(?:[\w+.-]+://|/|\.\.?/|[a-z]:\\)\S+{_SUFFIXES}", re.IGNORECASE)
_NAME = re.compile(rf"[^\n]{{0,400}}{_SUFFIXES}", re.IGNORECASE | re.DOTALL)
_LONGEST_NAME = 4096
_KEY = re.compile(r"image|img|picture|photo|pixel|video|frames?$", re.IGNORECASE)
# Words that a key may have, none of them as a part of another word.
_KEY_WORDS = {
    *("pic", "pics", "media", "fig", "figure", "figures", "screenshot", "screenshots", "thumbnail", "scan", "scans"),
    *("jpg", "jpeg", "png", "webp"),
}
# Fields that say what something is.
_KINDS = ("type", "kind", "modality", "media_type", "mime_type")
# How the bytes of PNG and JPEG begin in hexadecimal.
_IN_HEX = re.compile(r"(?:89504e47|ffd8ff)[0-9a-f]{60,}", re.IGNORECASE)
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
    for text in (content.system or "", *(turn.prompt for turn in content.turns)):
        if found := named_in(text):
            raise BadRow(
                f"names a picture by {shortened(found)!r} in its text, which is not understood, and has no picture; "
                "name it under 'image', with <image> in the text"
            )
    known = set(texts)
    for key, value in _named(row, "", 0, False):
        if isinstance(value, str) and value in known:
            continue
        shown = shortened(value if isinstance(value, str) else repr(value))
        raise BadRow(
            f"has no picture, but {key!r} looks like one ({shown}); name it under 'image' or take the field out"
        )


def named_in(text: str) -> str | None:
    """How a text names a picture, other than by the placeholder; None where it does not."""
    for tag in _TAG.finditer(text):
        if tag[0] != IMAGE_PLACEHOLDER:
            return tag[0]
    for line in text.splitlines():
        words = line.split()
        for word in words[:1] + words[-1:]:
            if len(word) < 1000 and _PLACE.fullmatch(word):
                return word
    return None


def _named(value: Any, key: str, depth: int, within: bool) -> Iterator[tuple[str, Any]]:
    """Field and value of whatever looks like a picture's name.

    Args:
        value: a row or a part of it.
        key: the field that it is in.
        depth: how many fields and lists it is in.
        within: whether it is in something that is called as pictures are.
    """
    within = within or _is_key(key)
    if isinstance(value, dict):
        for name, each in value.items() if depth < _DEPTH else ():
            yield from _named(each, str(name), depth + 1, within)
    elif isinstance(value, list):
        for each in value if depth < _DEPTH else ():
            yield from _named(each, key, depth + 1, within)
    elif isinstance(value, bytes):
        if value:
            yield key, f"{len(value)} bytes"
    elif isinstance(value, str):
        if value and (within or _is_picture(key, value)):
            yield key, value
    elif value and not isinstance(value, bool) and not is_nan(value) and within:
        yield key, value


def _is_key(key: str) -> bool:
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", key[:1000])}
    return bool(_KEY.search(key)) or not _KEY_WORDS.isdisjoint(words)


def _is_picture(key: str, value: str) -> bool:
    """Whether a text names a picture or is one, whatever its field is called."""
    kind = key.lower() in _KINDS and re.search(r"image|picture|photo|video", value[:100], re.IGNORECASE)
    named = len(value) < _LONGEST_NAME and _NAME.fullmatch(value)
    return bool(kind or is_base64(value) or named or value[:11].lower() == "data:image/" or _IN_HEX.match(value))
