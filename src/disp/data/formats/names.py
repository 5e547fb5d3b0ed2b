"""Names of files, and the first bytes of what they hold: whether either is of a picture, or of a video or a sound."""

from __future__ import annotations

import os
import re
from pathlib import Path

from disp.data.references import Finder, NotFound, is_base64
from disp.data.whereabouts import names_in_uri

MOVING = r"mp4|m4v|avi|mov|webm|mkv|mpe?g|wmv|flv|3gp|ogv|wav|mp3|flac|ogg|opus|m4a|aac|wma|aiff?"
SUFFIXES = (
    r"\.(?:jpe?g|jpe|jfif|jp2|jxl|png|webp|gif|bmp|tiff?|heic|heif|avif|svg|ppm|pgm|tga|dcm|dicom|nii|nii\.gz|npy|npz"
    rf"|{MOVING})(?:[?#][^\s]*)?"
)
LONGEST_NAME = 4096
_NAME = re.compile(rf"[^\n]{{0,400}}{SUFFIXES}", re.IGNORECASE | re.DOTALL)
_MOVING_FILE = re.compile(rf"\S[^\n]{{0,400}}\.(?:{MOVING})(?:[?#][^\s]*)?", re.IGNORECASE)
# How the bytes of PNG and JPEG begin in hexadecimal.
_IN_HEX = re.compile(r"(?:89504e47|ffd8ff)[0-9a-f]{60,}", re.IGNORECASE)
_DATA_URI = re.compile(
    r"data:(?:image/[^,]{0,200};base64,|[^,]{0,200};base64,\s*(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR))", re.IGNORECASE
)
# No picture is shorter, and the digests of MD5, SHA-1 and SHA-256 are not longer; the smallest BMP has 58 bytes.
_LEAST_BYTES = 33
_PICTURE_BYTES = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|BM.{4}\0\0\0\0|II\*\0|MM\0\*|RIFF.{4}WEBP|\0\0\0\x0c(?:jP  |JXL )"
    rb"|.{4}ftyp(?:avif|avis|heic|heix|mif1|msf1)|P[1-7]\s+\d+\s+\d+\s|\x93NUMPY|.{128}DICM",
    re.DOTALL,
)
_MOVING_BYTES = re.compile(rb".{4}ftyp|RIFF.{4}(?:AVI |WAVE)|OggS|fLaC|ID3[\x02-\x04]|\x1aE\xdf\xa3", re.DOTALL)
# What says that there is nothing, in tables and in forms that were filled in.
_NOTHING = frozenset({"", "-", "none", "no", "n/a", "na", "null", "nil", "nan", "false", "-1"})


def is_file_name(text: str) -> bool:
    """Whether a text is called as the file of a picture, a video or a sound is."""
    return len(text) < LONGEST_NAME and _NAME.fullmatch(text) is not None


def is_moving_name(text: str) -> bool:
    """Whether a text is called as the file of a video or a sound is."""
    return len(text) < LONGEST_NAME and _MOVING_FILE.fullmatch(text) is not None


def is_picture_text(text: str) -> bool:
    """Whether a text is a picture itself: in base64, in hexadecimal, or as a data URI."""
    text = text[:1000].lstrip() + text[1000:] if text[:1].isspace() else text
    return is_base64(text) or _IN_HEX.match(text) is not None or _DATA_URI.match(text) is not None


def is_picture_bytes(content: bytes) -> bool:
    """Whether bytes begin as those of a picture do."""
    return len(content) >= _LEAST_BYTES and _PICTURE_BYTES.match(content) is not None


def is_moving_bytes(content: bytes) -> bool:
    """Whether bytes begin as those of a video or a sound do."""
    return len(content) >= _LEAST_BYTES and not is_picture_bytes(content) and _MOVING_BYTES.match(content) is not None


def says_nothing(value: object) -> bool:
    """Whether a value says that there is nothing: ``"none"``, ``"N/A"``, -1, NaN."""
    if isinstance(value, str):
        return len(value) < 10 and value.strip().lower() in _NOTHING
    return not value or value == -1 or value != value  # NaN is not equal to itself


def stem(name: str) -> str:
    """A name without folder and suffix, in small letters."""
    return re.split(r"[/\\]", name)[-1].partition(".")[0].lower()


def file_called(name: str, finder: Finder) -> Path | None:
    """The file that a name means; None where none lies there.

    One outside the image folder is found too: that it is not read does not mean that nobody reads it. Nothing is
    fetched from the network.
    """
    if not 0 < len(name) < LONGEST_NAME or is_picture_text(name):
        return None
    if name[:7].lower() == "file://":
        found = (file_called(each, finder) for each in names_in_uri(name))
        return next((file for file in found if file is not None), None)
    if "://" in name or re.match("(?:data|https?):", name, re.IGNORECASE):
        return None
    try:
        return finder.find(name).file
    except NotFound:
        roots = [finder.image_root, finder.image_root.parent, *([finder.beside] if finder.beside else [])]
        # Blanks around a name and what a server is asked behind it, as other readers take them off.
        names = dict.fromkeys((name, name.strip(), re.split("[?#]", name)[0].strip()))
        places = (root / each.replace("\\", os.sep) for each in names if each for root in roots)
        return next((place for place in places if os.path.isfile(place)), None)


def is_no_picture(picture: object, finder: Finder) -> bool:
    """Whether a row says in words that it has no picture, as in ``"image": "None"``, and no file is called so."""
    return isinstance(picture, str) and says_nothing(picture) and file_called(picture, finder) is None
