"""The members of a WebDataset sample: which are its pictures, its JSON and its caption, by what they are called."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from PIL import Image

from disp.data.formats.dialects import is_row
from disp.data.formats.json_files import value_of
from disp.data.formats.names import is_picture_bytes
from disp.data.formats.row import BadRow
from disp.data.sample import picture_formats

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "jfif", "heic", "avif", "svg")
SOME = "jpg, png, webp, gif, bmp or tiff"
# Members that show something and are no picture that is opened here.
OTHERS = {
    *("jxl", "jp2", "jpe", "dcm", "nii", "npy", "npz", "pth", "pt", "exr", "tga"),
    *("mp4", "avi", "mov", "webm", "mkv", "wav", "mp3", "flac", "ogg", "m4a"),
}
# Those of them that are numbers worked out of a picture, where there is one beside them.
_NUMBERS = {"npy", "npz", "pth", "pt"}
# Members that hold members of the kinds above, or rows, for libraries that unpack them.
_PACKED = {"gz", "bz2", "xz", "zst", "zip", "jsonl", "ndjson", "parquet", "arrow"}
# Members of text, one of which is a sample's caption.
CAPTIONS = ("txt", "text", "caption")

# Their content by what they are called behind the first point.
Members = dict[str, bytes]


def split_name(name: str) -> tuple[str, str]:
    """Key and field of a member; no key where its name begins with a point."""
    folder, slash, base = name.rpartition("/")
    stem, _, field = base.partition(".")
    return (folder + slash + stem if stem else ""), field


def suffix_of(file: Path) -> str:
    """What a picture's member is called by: its file's suffix, or one of its content where readers do not know that."""
    suffix = file.suffix.lstrip(".").lower()
    if suffix in PICTURES:
        return suffix
    try:
        with Image.open(file, formats=picture_formats()) as image:
            kind = {"MPO": "jpg", "JPEG": "jpg"}.get(image.format or "", (image.format or "").lower())
    except (OSError, ValueError, SyntaxError):  # whoever reads the set finds it damaged
        return "png"
    return kind if kind in PICTURES else "png"


def kind_of(field: str) -> str:
    """What a member holds, as its name tells behind its last point."""
    return field.lower().rpartition(".")[2]


def all_pictures(members: Members) -> Members:
    """The members that are pictures."""
    return {name: content for name, content in members.items() if kind_of(name) in PICTURES}


def pictures_shown(members: Members) -> Members:
    """The pictures that a sample shows.

    Where one is called by its suffix alone, as trainers ask for it, those with a word before it (``mask.png``) are
    something about it; those with a number are further pictures.
    """
    found = all_pictures(members)
    if not any("." not in name for name in found):
        return found
    return {name: content for name, content in found.items() if all(map(str.isdecimal, name.split(".")[:-1]))}


def json_field(members: Members) -> str | None:
    """The member with the row: ``json``, or the only one of JSON.

    Raises:
        BadRow: there are several.
    """
    found = [name for name in members if kind_of(name) == "json"]
    field = next((name for name in found if name.lower() == "json"), found[0] if found else None)
    others = [name for name in found if name != field]
    if others and (str(field).lower() != "json" or any(_holds_row(members[name]) for name in others)):
        raise BadRow(
            f"has the rows {' and '.join(found)[:200]}; names of samples differ before the first point: call them "
            "img-v0.json and img-v1.json, not img.v0.json and img.v1.json"
        )
    return field


def _holds_row(content: bytes) -> bool:
    value = value_of(content)
    if isinstance(value, BadRow):  # a key twice, of which either may be meant
        return True
    return isinstance(value, dict) and is_row({"image": "0.png", **value})


def not_looked_at(members: Members, read: Collection[str | None]) -> str | None:
    """A member that others may take for the sample's picture or its row, and that is not read; None if there is none.

    Members with a word before their suffix (``depth.npy``, ``mask.jxl``) are something about the sample.

    Args:
        members: of a sample.
        read: its row and its caption.
    """
    pictures = all_pictures(members)
    for name, content in members.items():
        kind = kind_of(name)
        if name in read or name in pictures or kind == "json":
            continue
        shows = kind in OTHERS - _NUMBERS and "." not in name
        drawn = is_picture_bytes(content) and kind not in OTHERS
        if kind in _PACKED or (pictures and (shows or drawn)) or _holds_row(content):
            return name
    return None


def caption_field(members: Members) -> str | None:
    """The member with the caption, one with words if there is one.

    Raises:
        BadRow: several have words.
    """
    found = [name for name in members if kind_of(name) in CAPTIONS]
    filled = [name for name in found if members[name].strip()]
    if len(filled) > 1:
        raise BadRow(f"has the captions {' and '.join(filled)[:200]}; keep one of them")
    return next(iter(filled or found), None)


def text_of(field: str, members: Members) -> str:
    """The text of a member.

    Raises:
        BadRow: it is not in UTF-8.
    """
    try:
        return members[field].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRow(f"{field} is not in UTF-8 ({error}); save it as UTF-8") from None


def not_text(members: Members) -> str | None:
    """The first member that shows or plays something, as its name or its bytes tell; None if there is none."""
    for name, content in members.items():
        if kind_of(name) in OTHERS or b"\0" in content:
            return name
        try:
            content.decode()
        except UnicodeDecodeError:
            return name
    return None
