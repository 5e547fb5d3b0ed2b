"""How a text names a picture, a video or a sound, other than by the placeholder: tags, Markdown, lines with a name.

What a text says *about* such tags, as in a question on HTML, names nothing: a tag that is no model's own counts at the
beginning or the end of a line only, outside code and markup. A name whose file is there counts in all of these.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from disp.data.formats.names import SUFFIXES, is_moving_name
from disp.data.formats.row import LONGEST_WORD
from disp.data.sample import IMAGE_PLACEHOLDER

# Whether a file is there that is called so.
IsThere = Callable[[str], bool]

_WORD = r"images?|img|pictures?|photos?|pics?|endofimage|vision|visual|media|frames?|im_(?:start|end|patch)|[sbe]oi"
# ChatML begins and ends a message so; LLaVA's tokens of this name have no "|".
_NO_TURN = r"(?!<\|im_(?:start|end)\|>)"
_MEDIUM = (
    r"(?:video|audio|speech|sound)(?:[\s_-]?(?:pad|start|end|bos|eos|token|soft|placeholder|here|\d{1,4})){0,3}\s?/?"
)
# What models have for tokens: no text says these words in another sense.
_TOKEN = re.compile(
    rf"{_NO_TURN}<\|[\w\s|/.:#-]{{0,24}}?(?<![a-z])(?:{_WORD})(?![a-z])[\w\s|/.:#-]{{0,24}}>|<ImageHere>|<IMG_CONTEXT>"
    r"|<start_of_image>|<image_soft_token>",
    re.IGNORECASE,
)
_MEDIA_TOKEN = re.compile(rf"<\|{_MEDIUM}\|>", re.IGNORECASE)
# A word for a picture in brackets of some kind.
_TAG = re.compile(
    r"<img>|</img>"
    rf"|{_NO_TURN}(?<!\w)(?:<|＜|&lt;)[\w\s|/.:#-]{{0,24}}?(?<![a-z])(?:{_WORD})(?![a-z])[\w\s|/.:#-]{{0,24}}(?:>|＞|&gt;)"
    r"|(?<!\w)\[\s*(?:image|img|picture|photo)[\s_#-]{0,9}\d{0,9}\s{0,9}\]"
    r"|\{\{?\s*(?:image|img|picture|photo)_?\d*\s*\}\}?",
    re.IGNORECASE,
)
_MEDIA_TAG = re.compile(rf"(?<!\w)<{_MEDIUM}>", re.IGNORECASE)
# A name within tags, as ms-swift and Qwen-VL have it.
_NAMED = re.compile(rf"<(img|image|picture|photo|video|audio)>([^<>\n]{{1,{LONGEST_WORD}}})</\1>", re.IGNORECASE)
_HTML = re.compile(r"<img\s[^<>]{0,2000}>", re.IGNORECASE)
_SOURCE = re.compile(r"""\bsrc\s*=\s*["']?([^"'>]+)""", re.IGNORECASE)
_MARKDOWN = re.compile(r"!\[[^\[\]\n]{0,300}\]\(([^)\[\n]{1,2000})\)")
_DATA = re.compile(r"data:image/[\w.+-]{1,40};base64,([\w+/=]+)", re.IGNORECASE)
# An element that ends: the text is HTML, XML or the like.
_MARKUP = re.compile(r"</(?!img\b)[a-z][\w:.-]{0,40}\s?>", re.IGNORECASE)
_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`", re.DOTALL)
# Tags that stand for a picture each.
_NUMBERED = re.compile(
    r"<\|?(?:image|img|picture|pic)[\s_#-]?(\d{1,3})\s?/?\|?>|\[(?:image|img|picture)[\s_#-]?(\d{1,3})\]", re.IGNORECASE
)
_SINGLE = re.compile(r"<\|image\|>|<ImageHere>|<start_of_image>|<\|vision_start\|>|<\|soi\|>")
# What stands around a name, or ends the sentence or the label before it.
_BEFORE, _AFTER, _ENDS = (
    "\"'`<[({“‘（【《",
    "\"'`>])},;:.!?”’）】》，。：；、！？",
    (":", ".", "?", "!", "：", "。", "？", "！"),
)
_WRAPPED = re.compile(rf"<[^<>]{{1,40}}>([^<>]{{1,{LONGEST_WORD}}})</[^<>]{{1,40}}>")
_PLACE = re.compile(rf"(?:[\w+.-]+://|/|\.\.?/|[a-z]:[\\/]|\\\\)\S+{SUFFIXES}", re.IGNORECASE)
_FILE = re.compile(rf"\S+{SUFFIXES}", re.IGNORECASE)
# As in "url(images/bg.png)" and "src=a.png".
_IN_CODE = re.compile(r"[\w.-]+(?:\((?!.*\))|=)")
_LABEL = re.compile(r"image|img|picture|photo|pixel|video|audio|frames?$", re.IGNORECASE)
# So many names in lines of their own, behind a line that announces them, are a list that the text is about.
_LIST = 3
# A picture of one pixel is longer in base64.
_LEAST_PAYLOAD = 40


def media_in(text: str, is_there: IsThere) -> str | None:
    """How a text names a video or a sound; None where it does not."""
    if found := _MEDIA_TOKEN.search(text):
        return found[0]
    for named in _NAMED.finditer(text):
        if is_moving_name(named[2].strip()) or (named[1].lower() in ("video", "audio") and is_there(named[2].strip())):
            return named[0]
    plain = _without_code(text)
    if _MEDIA_TAG.search(plain) and not _MARKUP.search(plain):
        return next((tag for line in plain.splitlines() for tag in _at_ends(line) if _MEDIA_TAG.fullmatch(tag)), None)
    return None


def picture_in(text: str, is_there: IsThere) -> str | None:
    """How a text names a picture; None where it does not."""
    if found := _TOKEN.search(text):
        return found[0]
    for named in _NAMED.finditer(text):
        if _FILE.fullmatch(named[2].strip()) or is_there(named[2].strip()):
            return named[0]
    for html in _HTML.finditer(text):
        if any(is_there(source.strip()) for source in _SOURCE.findall(html[0])):
            return html[0]
    for link in _MARKDOWN.finditer(text):
        if is_there(_target(link[1])):
            return link[0]
    for data in _DATA.finditer(text):
        if len(data[1]) >= _LEAST_PAYLOAD:
            return data[0]
    plain = _without_code(text)
    if not _MARKUP.search(plain):
        if (numbered := _NUMBERED.search(plain)) and numbered[0].startswith("<"):
            return numbered[0]
        for line in plain.splitlines():
            for tag in _at_ends(line):
                if _names_picture(tag):
                    return tag
            if found := _HTML.match(line.lstrip()):
                return found[0]
    return _line_with_name(text, plain, is_there)


def surplus(prompts: Sequence[str], count: int) -> str | None:
    """A tag that stands for a picture beyond the ``count`` of a row's prompts; None where there is none."""
    for prompt in prompts:
        begin = prompt.find("<img>")
        end = prompt.find("</img>", begin) if begin >= 0 else -1
        if 0 <= end - begin < LONGEST_WORD and _FILE.fullmatch(prompt[begin + 5 : end].strip()):
            return prompt[begin : end + 6]
    found = (tag for prompt in prompts for tag in _numbered(prompt))
    tags = {int(tag[1] or tag[2]): tag[0] for tag in found}
    placed = sum(prompt.count(IMAGE_PLACEHOLDER) for prompt in prompts)
    if tags and (len(tags) > count or (placed and max(tags) > count)):
        return tags[max(tags)]
    single = Counter(tag for prompt in prompts for tag in _SINGLE.findall(prompt))
    return next((tag for tag, times in single.items() if times > count), None)


def _numbered(prompt: str) -> Iterator[re.Match[str]]:
    """Tags with a number: a model's own anywhere, and others where a line begins or ends."""
    for line in prompt.splitlines():
        tags = list(_NUMBERED.finditer(line))
        ends = set(_at_ends(line)) if tags else set()
        yield from (tag for tag in tags if tag[0].startswith("<|") or tag[0] in ends)


def _without_code(text: str) -> str:
    """The text with blanks for what is set as code; lines stay where they are."""
    return _CODE.sub(lambda code: re.sub(r"\S", " ", code[0]), text) if "`" in text or "~~~" in text else text


def _names_picture(tag: str) -> bool:
    if link := _MARKDOWN.fullmatch(tag):
        return _FILE.fullmatch(_target(link[1])) is not None or link[1].startswith("data:")
    return tag != IMAGE_PLACEHOLDER and not _MEDIA_TAG.fullmatch(tag)


def _target(link: str) -> str:
    """Where a link of Markdown leads, without its title."""
    return (link.split(maxsplit=1) or [""])[0].strip("<>")


_OPENS = re.compile(r"[<＜\[{]|&lt;|data:", re.IGNORECASE)
_ANY = re.compile(
    "|".join(f"(?:{each.pattern})" for each in (_MARKDOWN, _TOKEN, _MEDIA_TAG, _TAG, _DATA)), re.IGNORECASE
)


def _at_ends(line: str) -> Iterator[str]:
    """The tags that a line begins with, and those that it ends with."""
    if not _OPENS.search(line):  # most lines, and looking for all tags takes longer
        return
    tags = list(_ANY.finditer(line))
    for ordered, begins in ((tags, True), (tags[::-1], False)):
        place = 0 if begins else len(line)
        for tag in ordered:
            between = line[place : tag.start()] if begins else line[tag.end() : place]
            if between.strip():
                break
            yield tag[0]
            place = tag.end() if begins else tag.start()


def _line_with_name(text: str, plain: str, is_there: IsThere) -> str | None:
    """The name of a file that a line begins or ends with; a name in code or in a list counts if its file is there."""
    lines = text.splitlines()
    found = [_place_in(line) for line in lines]
    if not any(found):
        return None
    listed = _in_list(lines, found)
    for number, (place, outside) in enumerate(zip(found, plain.splitlines(), strict=True)):
        if place is None:
            continue
        name = _bare(place)
        said = number in listed or place not in outside or _IN_CODE.match(name)
        if not said or is_there(_IN_CODE.sub("", name, count=1).strip("\"'")):
            return place
    return None


def _in_list(lines: Sequence[str], found: Sequence[str | None]) -> set[int]:
    """The numbers of the lines that are a list of names, as "Sort these files:" announces one."""
    listed: set[int] = set()
    start = 0
    while start < len(lines):
        end = start
        while end < len(lines) and found[end] is not None and len(lines[end].split()) == 1:
            end += 1
        before = lines[start - 1].rstrip() if start else ""
        if end - start >= _LIST and before.endswith((":", "：")) and not _LABEL.search(before[-LONGEST_WORD:]):
            listed.update(range(start, end))
        start = max(end, start + 1)
    return listed


def _bare(word: str) -> str:
    wrapped = _WRAPPED.fullmatch(word)
    return wrapped[1] if wrapped else word.lstrip(_BEFORE).rstrip(_AFTER)


def _place_in(line: str) -> str | None:
    """The name of a file that a line begins or ends with; None where it is a part of a sentence."""
    words = line.split()
    ends = [word for word in words[:1] + words[-1:] if len(word) < LONGEST_WORD]
    if place := next((word for word in ends if _PLACE.fullmatch(word)), None):
        return place
    if not ends or len(words[0]) >= LONGEST_WORD:
        return None
    first = _bare(words[0])
    if _FILE.fullmatch(first):
        wrapped = bool(_WRAPPED.fullmatch(words[0]))
        alone = len(words) == 1 or wrapped or words[0][0] in "<["
        apart = alone or words[0] != first or not words[1][0].islower()
        if alone or (apart and re.search(r"[/\\]", first)):
            return words[0]
    if len(words) > 1 and len(words[-1]) < LONGEST_WORD and words[-2].endswith(_ENDS):
        last = words[-1].lstrip(_BEFORE).rstrip(_AFTER)
        label = (
            words[-2].endswith((":", "：")) and len(line) < LONGEST_WORD and _LABEL.search(line.partition(words[-1])[0])
        )
        if _FILE.fullmatch(last) and (label or re.search(r"[/\\]", last)):
            return words[-1]
    return None
