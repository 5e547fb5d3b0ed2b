"""Rows that name a picture in a way that is not understood: they must not pass as rows without it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from disp.data.formats.row import BadRow, Content, Fields, is_nan
from disp.data.references import is_base64
from disp.data.sample import IMAGE_PLACEHOLDER
from disp.words import shortened

_MEDIA = ("video", "videos", "audio", "audios", "video_path", "audio_path")
_MEDIA_TAG = re.compile(
    r"<(?:video|audio)>|(?i:(?<!\w)<\|?(?:video|audio|speech|sound)(?:[\s_-]?(?:pad|start|end|bos|eos|token|soft|placeholder|here|\d{1,4})){0,3}"
    r"\s?/?\|?>)"
)
_MOVING = r"mp4|m4v|avi|mov|webm|mkv|mpe?g|wmv|flv|3gp|ogv|wav|mp3|flac|ogg|opus|m4a|aac|wma|aiff?"
_SUFFIXES = (
    r"\.(?:jpe?g|jpe|jfif|jp2|jxl|png|webp|gif|bmp|tiff?|heic|heif|avif|svg|ppm|pgm|tga|dcm|dicom|nii|nii\.gz|npy|npz"
    rf"|{_MOVING})(?:[?#][^\s]*)?"
)
# How other models' rows name a picture in their text: a word for it in brackets of some kind, or Markdown.
_TAG = re.compile(
    r"<img\b|</img>|<\|?(?:image|img|vision|picture)[\w|]*>|<ImageHere>|<IMG_CONTEXT>|!\[[^\[\]\n]{0,300}\]\([^)\n]{1,2000}\)"
    r"|data:image/|(?i:(?<!\w)(?:<|＜|&lt;)[\w\s|/.:#-]{0,24}?(?<![a-z])(?:images?|img|pictures?|photos?|pics?|endofimage|vision|visual|media|frames?"
    r"|im_(?:start|end|patch)|[sbe]oi)(?![a-z])[\w\s|/.:#-]{0,24}(?:>|＞|&gt;)"
    r"|(?<!\w)\[\s*(?:image|img|picture|photo)[\s_#-]{0,9}\d{0,9}\s{0,9}\]|\{\{?\s*(?:image|img|picture|photo)_?\d*\s*\})"
)
# A line of a question that begins or ends with a picture's place.
_PLACE = re.compile(rf"(?:[\w+.-]+://|/|\.\.?/|[a-z]:[\\/]|\\\\)\S+{_SUFFIXES}", re.IGNORECASE)
_FILE = re.compile(rf"\S+{_SUFFIXES}", re.IGNORECASE)
_MOVING_FILE = re.compile(rf"\S[^\n]{{0,400}}\.(?:{_MOVING})(?:[?#][^\s]*)?", re.IGNORECASE)
# What stands around a name, or ends the sentence or the label before it.
_BEFORE, _AFTER, _ENDS = (
    "\"'`<[({“‘（【《",
    "\"'`>])},;:.!?”’）】》，。：；、！？",
    (":", ".", "?", "!", "：", "。", "？", "！"),
)
_WRAPPED = re.compile(r"<[^<>]{1,40}>([^<>]{1,1000})</[^<>]{1,40}>")
# Tags that stand for a picture each.
_NUMBERED = re.compile(
    r"<\|?(?:image|img|picture|pic)[\s_#-]?(\d{1,3})\s?/?\|?>|\[(?:image|img|picture)[\s_#-]?(\d{1,3})\]", re.IGNORECASE
)
_SINGLE = re.compile(r"<\|image\|>|<ImageHere>|<start_of_image>|<\|vision_start\|>|<\|soi\|>")
_NAME = re.compile(rf"[^\n]{{0,400}}{_SUFFIXES}", re.IGNORECASE | re.DOTALL)
_LONGEST_NAME = 4096
_KEY = re.compile(r"image|img|picture|photo|pixel|video|audio|sampling_rate|frames?$", re.IGNORECASE)
# Words that a key may have, none of them as a part of another word.
_KEY_WORDS = {
    *("pic", "pics", "media", "fig", "figure", "figures", "screenshot", "screenshots", "thumbnail", "scan", "scans"),
    *("jpg", "jpeg", "png", "webp", "mp4", "wav", "mp3"),
}
# Words for what is shown beside a picture.
_BESIDE = frozenset({"mask", "masks", "depth", "segmentation"})
# Fields that say what something is.
_KINDS = ("type", "kind", "modality", "media_type", "mime_type")
# How the bytes of PNG and JPEG begin in hexadecimal.
_IN_HEX = re.compile(r"(?:89504e47|ffd8ff)[0-9a-f]{60,}", re.IGNORECASE)
# Rows are not nested deeper than this in any format; what lies deeper is not looked through.
_DEPTH = 6


def check_seen(row: Fields, content: Content) -> None:
    """Make sure that no picture of a row stays unseen.

    Raises:
        BadRow: the row is about a video or a sound, or something in it names a picture that was not read.
    """
    for key in _MEDIA:
        if row.get(key) and not is_nan(row[key]):
            raise BadRow(
                f"is about a {key.split('_')[0].removesuffix('s')} ({key!r}), which no model here takes; drop it"
            )
    texts = [content.system or "", *(text for turn in content.turns for text in (turn.prompt, turn.response))]
    for turn in content.turns:
        if tag := _MEDIA_TAG.search(turn.prompt):
            raise BadRow(f"is about a video or a sound ({tag[0]}), which no model here takes; drop the row")
    if content.pictures:
        _check_others(row, content, texts)
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
        shown = _shown(value)
        if re.search("video|audio|sampling_rate", key, re.IGNORECASE) or _is_moving(value):
            raise BadRow(f"is about a video or a sound ({key!r}: {shown}), which no model here takes; drop it")
        raise BadRow(
            f"has no picture, but {key!r} looks like one ({shown}); name it under 'image' or take the field out"
        )


def _check_others(row: Fields, content: Content, texts: list[str]) -> None:
    """Make sure that a row names no other pictures than those that were read.

    Addresses on the network say where a picture comes from, and names are compared without folder and suffix, because
    pictures are moved and converted; where one has no name there is nothing to compare with.
    """
    held = [picture.get("bytes") if isinstance(picture, dict) else picture for picture in content.pictures]
    names = [picture.get("path") if isinstance(picture, dict) else picture for picture in content.pictures]
    files = [name for name in names if isinstance(name, str) and _NAME.fullmatch(name[:_LONGEST_NAME])]
    stems = set(map(_stem, files)) if len(files) == len(names) else None
    for key, value in _named(row, "", 0, False):
        if value in held or value in names or (isinstance(value, str) and value in texts):
            continue
        if isinstance(value, str) and _is_moving(value) and not re.search(r"\s|://", value):
            raise BadRow(f"is about a video or a sound ({key!r}: {_shown(value)}), which no model here takes; drop it")
        named = isinstance(value, str) and "://" not in value and _NAME.fullmatch(value[:_LONGEST_NAME])
        other = named and stems is not None and _is_key(key, _BESIDE) and _stem(str(value)) not in stems
        if other or isinstance(value, bytes) or (isinstance(value, str) and (is_base64(value) or _IN_HEX.match(value))):
            raise BadRow(
                f"has another picture under {key!r} ({_shown(value)}), which is not looked at; name all pictures in "
                "one field, or take this one out"
            )
    if found := _surplus(content):
        raise BadRow(
            f"names a picture by {shortened(found)!r} in its text, but has {len(content.pictures)}; add the picture or "
            "take the tag out"
        )


def _surplus(content: Content) -> str | None:
    """A tag that stands for a picture beyond those that a row has; None where there is none."""
    count = len(content.pictures)
    prompts = [turn.prompt for turn in content.turns]
    for prompt in prompts:
        begin = prompt.find("<img>")
        end = prompt.find("</img>", begin) if begin >= 0 else -1
        if 0 <= end - begin < 1000 and _FILE.fullmatch(prompt[begin + 5 : end].strip()):
            return prompt[begin : end + 6]
    tags = {int(tag[1] or tag[2]): tag[0] for prompt in prompts for tag in _NUMBERED.finditer(prompt)}
    placed = sum(prompt.count(IMAGE_PLACEHOLDER) for prompt in prompts)
    if tags and (len(tags) > count or (placed and max(tags) > count)):
        return tags[max(tags)]
    single = Counter(tag for prompt in prompts for tag in _SINGLE.findall(prompt))
    return next((tag for tag, times in single.items() if times > count), None)


def _stem(name: str) -> str:
    return re.split(r"[/\\]", name)[-1].partition(".")[0].lower()


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return shortened(value if isinstance(value, str) else repr(value))


def _is_moving(value: Any) -> bool:
    return isinstance(value, str) and len(value) < _LONGEST_NAME and _MOVING_FILE.fullmatch(value) is not None


def named_in(text: str) -> str | None:
    """How a text names a picture, other than by the placeholder; None where it does not."""
    for tag in _TAG.finditer(text):
        if tag[0] != IMAGE_PLACEHOLDER:
            return tag[0]
    for line in text.splitlines():
        if found := _place_in(line):
            return found
    return None


def _place_in(line: str) -> str | None:
    """The name of a file that a line begins or ends with; None where it is a part of a sentence."""
    words = line.split()
    ends = [word for word in words[:1] + words[-1:] if len(word) < 1000]
    if place := next((word for word in ends if _PLACE.fullmatch(word)), None):
        return place
    if not ends or len(words[0]) >= 1000:
        return None
    wrapped = _WRAPPED.fullmatch(words[0])
    first = wrapped[1] if wrapped else words[0].lstrip(_BEFORE).rstrip(_AFTER)
    if _FILE.fullmatch(first):
        alone = len(words) == 1 or bool(wrapped) or words[0][0] in "<["
        apart = alone or words[0] != first or not words[1][0].islower()
        if alone or (apart and re.search(r"[/\\]", first)):
            return words[0]
    if len(words) > 1 and len(words[-1]) < 1000 and words[-2].endswith(_ENDS):
        last = words[-1].lstrip(_BEFORE).rstrip(_AFTER)
        label = words[-2].endswith((":", "：")) and len(line) < 1000 and _KEY.search(line.partition(words[-1])[0])
        if _FILE.fullmatch(last) and (label or re.search(r"[/\\]", last)):
            return words[-1]
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
            yield key, value
    elif isinstance(value, str):
        if value and (within or _is_picture(key, value)):
            yield key, value
    elif value and not isinstance(value, bool) and not is_nan(value) and within:
        yield key, value


@lru_cache(256)  # the rows of a set have the same keys
def _is_key(key: str, more: frozenset[str] = frozenset()) -> bool:
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", key[:1000])}
    return bool(_KEY.search(key)) or not words.isdisjoint(_KEY_WORDS | more)


def _is_picture(key: str, value: str) -> bool:
    """Whether a text names a picture or is one, whatever its field is called."""
    kind = key.lower() in _KINDS and re.search(r"image|picture|photo|video", value[:100], re.IGNORECASE)
    named = len(value) < _LONGEST_NAME and _NAME.fullmatch(value)
    return bool(kind or is_base64(value) or named or value[:11].lower() == "data:image/" or _IN_HEX.match(value))
