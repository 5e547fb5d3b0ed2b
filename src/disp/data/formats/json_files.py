"""Rows in JSON: an array, or one object a line; both may be compressed with gzip."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from disp.data.dataset import Source
from disp.data.formats.files import Files, Output, with_values
from disp.data.formats.row import PICTURE_FIELDS, BadRow, Row
from disp.errors import DispError
from disp.files import write_atomically, write_jsonl, write_texts
from disp.words import shortened

# Text of rows is packed to a twentieth; what unpacks to far more is made to fill the memory.
MOST_UNPACKED, LEAST_LIMIT = 200, 64_000_000
# Bytes of a line that are read at once.
PART = 1 << 26
_SPACE, _ARRAY = re.compile(r"[ \t\n\r]*"), re.compile(r"[ \t\n\r]*\[")
# What tells where a value ends: a text, in which brackets mean nothing, brackets, and anything else.
_PARTS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]|[\]}]|[^\s,"\[\]{}]+', re.DOTALL)
_LINES = (".jsonl", ".ndjson")
SUFFIXES = (".json", *_LINES, ".json.gz", *(f"{suffix}.gz" for suffix in _LINES))


def is_json_name(name: str) -> bool:
    """Whether a file is called as JSON is."""
    return name.endswith(SUFFIXES)


def json_layout(path: Path, is_row: Callable[[Any], bool]) -> str:
    """How a file lies: "json" for an array of rows, "lines" for one row a line.

    The name decides, but where the content is clearly the other: lines in a .json, as `datasets` and pandas write
    them, or an array in a .jsonl.

    Args:
        path: the file.
        is_row: whether an object looks like a row, for a file of a single line.

    Raises:
        DispError: the file cannot be decompressed.
    """
    lines = path.name.removesuffix(".gz").endswith(_LINES)
    with _opened(path) as file:
        _check_encoding(next(_guarded(file, path), b""), path, lines)
    with _opened(path) as file:
        first = b""
        for line in _guarded(file, path):
            if first := line.removeprefix(codecs.BOM_UTF8).strip():
                break
        rest = any(line.strip() for line in _guarded(file, path)) if first[:1] == b"{" and not lines else False
    if lines:
        return "json" if first[:1] == b"[" and isinstance(_shape(_bytes(path), []), list) else "lines"
    value = _shape(first, {}) if first[:1] == b"{" else None
    return "lines" if isinstance(value, dict) and (rest or is_row(value)) else "json"


def rows(path: Path, source: Source) -> Iterator[Row]:
    """Each row, with its line or number; a line that is not JSON has an exception for a value.

    Raises:
        DispError: the file is not JSON or holds no array.
    """
    if source.files == "lines":
        with _opened(path) as file:
            # Bytes, so that a line that is not UTF-8 is set aside like any other that is not JSON.
            for number, line in enumerate(_guarded(file, path)):
                if len(line) == PART:
                    raise DispError(f"{path}:line {number + 1} has more than {PART:,} bytes; take the row out")
                if line.strip():
                    yield Row(f"{path.name}:line {number + 1}", number, value_of(line))
        return
    try:
        text = _text(_bytes(path))
        if _ARRAY.match(text):
            for number, row in enumerate(_elements(text)):
                yield Row(f"{path.name}:row {number + 1}", number, row)
            return
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DispError(f"{path} is not valid JSON ({error}); mend the file or write it again") from None
    if isinstance(found, dict) and any(isinstance(each, dict) and "annotation" in each for each in found.values()):
        raise DispError(
            f"{path} lists datasets, as InternVL's training takes them; give the file under 'annotation', and --images "
            "the folder under 'root'"
        )
    if isinstance(found, dict) and (lists := [key for key, each in found.items() if _has_ids(each)]):
        raise DispError(
            f"{path} tells of pictures by their number (image_id, in {shortened(', '.join(map(ascii, lists)), 100)}), "
            "as COCO and VQA do; join what belongs together into rows, such as "
            '{"image": "0.jpg", "question": "…", "answer": "…"}, and write the list of these'
        )
    keys = shortened(", ".join(map(ascii, found)), 100) if isinstance(found, dict) else ""
    raise DispError(
        f"{path} must hold a JSON array of rows, found {'null' if found is None else type(found).__name__}"
        + (f" with {keys}; write the list of rows alone" if keys else "")
    )


def _has_ids(value: Any) -> bool:
    """Whether a value lists questions, answers or captions of pictures that are named elsewhere."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and "image_id" in first and not any(first.get(name) for name in PICTURE_FIELDS)


def save_array(path: Path, outputs: Iterable[Output], like: tuple[Path, Source] | None = None) -> None:
    """Write an array of rows, atomically, one of which is in memory at a time."""
    texts = _array(with_values(output.row, text=True) for output in outputs)
    if path.name.endswith(".gz"):
        _compress(path, texts)
    else:
        write_texts(path, texts)


def save_lines(path: Path, outputs: Iterable[Output], like: tuple[Path, Source] | None = None) -> None:
    """Write one row a line, atomically."""
    found = (with_values(output.row, text=True) for output in outputs)
    if path.name.endswith(".gz"):
        _compress(path, (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in found))
    else:
        write_jsonl(path, found)


def _array(found: Iterable[Any]) -> Iterator[str]:
    """The parts of what ``json.dumps(list(found), indent=2)`` makes, and a line's end."""
    before = "["
    for row in found:
        # A line's end inside a text is written as two characters, so that those here are of the layout alone.
        text = json.dumps(row, indent=2, ensure_ascii=False, allow_nan=False).replace("\n", "\n  ")
        yield f"{before}\n  {text}"
        before = ","
    yield "[]\n" if before == "[" else "\n]\n"


def _compress(path: Path, texts: Iterable[str]) -> None:
    def write(temporary: Path) -> None:
        # Without name and time, so that the same rows are the same bytes.
        with temporary.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            for text in texts:
                packed.write(text.encode())

    write_atomically(path, write)


def _check_encoding(first: bytes, path: Path, lines: bool) -> None:
    """Say what a file is that cannot be read as its name says."""
    if first.startswith(b"\x1f\x8b") and not path.name.endswith(".gz"):
        raise DispError(f"{path} is compressed with gzip; call it {path.name}.gz")
    encoding = json.detect_encoding(first)
    if lines and not encoding.startswith("utf-8"):
        raise DispError(f"{path} is not in UTF-8, and may be in {encoding.upper()}; save it as UTF-8")


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _guarded(file: Any, path: Path) -> Iterator[bytes]:
    """The lines, or parts of a longer line."""
    unpacked, limit = 0, max(LEAST_LIMIT, MOST_UNPACKED * path.stat().st_size) if path.suffix == ".gz" else None
    try:
        while line := file.readline(PART):
            unpacked += len(line)
            if limit is not None and unpacked > limit:
                raise DispError(f"{path} unpacks to more than {MOST_UNPACKED} times its size; unpack it yourself")
            yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DispError(f"{path} cannot be decompressed ({error}); copy or download it again") from None


def _bytes(path: Path) -> bytes:
    found = bytearray()
    with _opened(path) as file:
        for line in _guarded(file, path):
            found += line
    return bytes(found)


def _text(content: bytes) -> str:
    """As `json.loads` decodes bytes."""
    return content.decode(json.detect_encoding(content), "surrogatepass")


def _elements(text: str) -> Iterator[Any]:
    """The elements of a JSON array, one at a time: all at once they take several times as much memory as the text.

    One that is nested too deep, has too long a number or a key twice is an exception.

    Raises:
        ValueError: it is not valid JSON.
    """
    repeated: list[str] = []
    decoder = json.JSONDecoder(object_pairs_hook=_noting(repeated))
    try:
        place = _skipped(text, text.index("[") + 1)
        more = not text.startswith("]", place)
        while more:
            value, place = _element(decoder, text, place)
            yield _twice(repeated.pop()) if repeated else value
            repeated.clear()
            place = _skipped(text, place)
            more = text.startswith(",", place)
            if more:
                place = _skipped(text, place + 1)
        if not text.startswith("]", place) or _skipped(text, place + 1) < len(text):
            raise ValueError(f"no end of the array at character {place}")
    except ValueError:
        json.loads(text, parse_int=float)  # which says best what is wrong, and where
        raise


def _element(decoder: json.JSONDecoder, text: str, place: int) -> tuple[Any, int]:
    """The value that begins at a place, and where it ends; an exception where Python cannot hold it."""
    try:
        return decoder.raw_decode(text, place)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        return error, _end(text, place)


def _end(text: str, place: int) -> int:
    """Where the value that begins at a place ends; the end of the text if it does not."""
    depth = 0
    for found in _PARTS.finditer(text, place):
        depth += (found[0] in "[{") - (found[0] in "]}")
        if depth == 0:
            return found.end()
    return len(text)


def _noting(repeated: list[str]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Makes objects of their keys and values, and notes a key that one has twice: only the last value would be seen."""

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated.append(Counter(key for key, _ in pairs).most_common(1)[0][0])
        return found

    return made


def _twice(key: str) -> BadRow:
    return BadRow(f"has the key {shortened(ascii(key))} twice, of which only one would be read; keep one of them")


def _skipped(text: str, place: int) -> int:
    """The next place without white space."""
    found = _SPACE.match(text, place)
    assert found is not None, "no space is space enough"
    return found.end()


def _shape(text: bytes, deep: Any) -> Any:
    """What a text holds, however it is to be used: numbers may have any length, and ``deep`` stands for nests."""
    try:
        return json.loads(text, parse_int=float)
    except RecursionError:
        return deep
    except ValueError as error:
        return error


def value_of(text: bytes) -> Any:
    """What JSON holds; an exception for what is not JSON, is nested too deep, or has a key twice."""
    repeated: list[str] = []
    try:
        value = json.loads(text, object_pairs_hook=_noting(repeated))
    except (ValueError, RecursionError) as error:
        return error
    return _twice(repeated[0]) if repeated else value


ARRAY = Files("json", "a JSON array", rows, save_array, ".json")
LINES = Files("lines", "JSON lines", rows, save_lines, ".jsonl")
