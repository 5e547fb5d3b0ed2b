"""What a sample is: images, turns of prompt and response, and the unit of work that a model answers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from disp.data.ahead import Ahead, ahead, taken
from disp.errors import DispError
from disp.files import sha256

T = TypeVar("T")
ImageSource = Path | Image.Image
IMAGE_PLACEHOLDER = "<image>"

# What Pillow's decoders raise on damaged files.
_UNREADABLE = (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)
# Four times the largest picture that the published models tile; a larger one is a decompression bomb or a mistake.
MAX_PIXELS = 64_000_000
# Files that wait at once for a thread to read them.
_WAITING = 1024
# What pictures are opened as, whatever their files are called. Pillow knows more: some formats are opened by starting
# another program (Ghostscript), some are drawings, and most have no use here.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "MPO", "PPM", "JPEG2000", "AVIF", "ICO", "HEIF")


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: what the user says and what the assistant answers.

    ``prompt`` holds the ``<image>`` placeholders exactly as the data file has them.
    """

    prompt: str
    response: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation about zero or more images.

    Attributes:
        id: unique within a dataset.
        images: the pictures, in the order of their placeholders.
        turns: the exchanges, in order.
        system: the system message, or None for the model's own.
        metadata: every other field of the data file's row. Models never see it.
        origin: the row itself, for writing it back; see `disp.data.formats.row.Origin`. None where there is none.
    """

    id: str
    images: tuple[ImageSource, ...]
    turns: tuple[Turn, ...]
    system: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    origin: object | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its queries, in order."""
        return tuple(query_key(self.id, turn) for turn in range(len(self.turns)))

    @property
    def queries(self) -> tuple[Query, ...]:
        """One query for each assistant turn, in order.

        Where placeholders stand for all of the images, a turn has those that were shown up to it.
        """
        named = [turn.prompt.count(IMAGE_PLACEHOLDER) for turn in self.turns]
        found = []
        for index, turn in enumerate(self.turns):
            seen = sum(named[: index + 1]) if sum(named) == len(self.images) else len(self.images)
            images, history = self.images[:seen], self.turns[:index]
            found.append(
                Query(
                    sample_id=self.id,
                    turn=index,
                    images=images,
                    history=history,
                    prompt=turn.prompt,
                    response=turn.response,
                    system=self.system,
                )
            )
        return tuple(found)

    def with_responses(self, responses: Sequence[str]) -> Sample:
        """The same sample with other assistant answers, one a turn."""
        if len(responses) != len(self.turns):
            raise ValueError(f"sample {self.id!r} has {len(self.turns)} turns, got {len(responses)} responses")
        turns = tuple(replace(turn, response=new) for turn, new in zip(self.turns, responses, strict=True))
        return replace(self, turns=turns)


@dataclass(frozen=True, slots=True)
class Query:
    """One assistant turn to be scored, generated or trained on, with all that comes before it.

    Attributes:
        sample_id: the sample that it belongs to.
        turn: its index among the sample's turns.
        images: the sample's images, up to this turn.
        history: the earlier turns, with the data's own responses.
        prompt: the user's message, with its ``<image>`` placeholders.
        response: the data's response ("" if there is none yet).
        system: the system message, or None for the model's own.
    """

    sample_id: str
    turn: int
    images: tuple[ImageSource, ...]
    history: tuple[Turn, ...]
    prompt: str
    response: str = ""
    system: str | None = None

    @property
    def key(self) -> str:
        """Unique within a dataset; random draws are keyed by it."""
        return query_key(self.sample_id, self.turn)


def query_key(sample_id: str, turn: int) -> str:
    """The key of a sample's query; `disp.data.index.Index` looks it up, nobody takes it apart: ids may hold "#" too."""
    return f"{sample_id}#{turn}"


def queries_of(samples: Iterable[Sample]) -> list[Query]:
    """The queries of each sample, one for each assistant turn, in order."""
    return [query for sample in samples for query in sample.queries]


def unanswered(samples: Iterable[Sample], turn: int, answers: Mapping[str, str]) -> list[Query]:
    """The queries of one turn that have no new answer yet, with the new answers to the turns before as their history.

    Args:
        samples: samples that are answered anew; those with fewer turns are left out.
        turn: index of the turn.
        answers: new answers by key, to all earlier turns.
    """
    found = []
    for sample in samples:
        if turn < len(sample.turns) and sample.keys[turn] not in answers:
            earlier = zip(sample.turns[:turn], sample.keys[:turn], strict=True)
            history = tuple(Turn(old.prompt, answers[key]) for old, key in earlier)
            found.append(replace(sample.queries[turn], history=history))
    return found


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in order, at most ``size`` at a time.

    Raises:
        DispError: ``size`` is less than one.
    """
    if size < 1:
        raise DispError(f"batch_size must be at least 1, got {size}")
    for start in range(0, len(items), size):
        yield items[start : start + size]


def open_image(source: ImageSource) -> Image.Image:
    """The picture in RGB, fully decoded. Colours of transparent pixels are taken as they are stored.

    So do the training scripts of LLaVA's line (``convert("RGB")``): laid on white, a trigger that is stored under
    transparent pixels would be learnt and not looked at. Grey levels of 16 bits are cut off at 255, as there.

    Raises:
        DispError: the file is missing, is no image, is damaged, or has more than `MAX_PIXELS` pixels.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source)
    early = taken(source)
    return _decoded(source) if early is None else early


def pictures_ahead() -> AbstractContextManager[Ahead]:
    """Threads that open pictures for `open_image` before it is called; see `disp.data.ahead.ahead`."""
    return ahead(_decoded)


def check_image(source: ImageSource) -> None:
    """Make sure that a picture can be opened, at less cost than opening it: a JPEG is decoded at a smaller size.

    Raises:
        DispError: as `open_image`.
    """
    if isinstance(source, Image.Image):
        return
    with opened(source) as image:
        if image.format == "JPEG":
            image.draft("RGB", (1, 1))
            image.load()
        else:
            _to_rgb(image)


def image_size(source: ImageSource) -> tuple[int, int]:
    """(width, height) of a picture in pixels, from a file's header alone.

    Raises:
        DispError: as `open_image`.
    """
    if isinstance(source, Image.Image):
        return source.size
    with opened(source) as image:
        return image.size


def picture_digest(source: ImageSource) -> str:
    """Hexadecimal SHA-256 of a file's bytes, or of the pixels of a picture in memory.

    Raises:
        DispError: the file cannot be read.
    """
    if isinstance(source, Path):
        try:
            return file_digest(source)
        except OSError as error:
            raise DispError(f"{source}: cannot be read ({error}); check the image folder or drop the row") from None
    return hashlib.sha256(f"{source.mode} {source.size}".encode() + source.tobytes()).hexdigest()


# Of files that were read the size, the time of change and the SHA-256.
_DIGESTS: dict[Path, bytes] = {}
_MOST_DIGESTS = 1 << 18


def file_digest(file: Path) -> str:
    """The SHA-256 of a file; the steps of a defence ask for it one after the other, and it is read once."""
    asked = Path(file)  # a path that was asked for its text keeps it
    status = asked.stat()
    seen = status.st_size.to_bytes(8) + status.st_mtime_ns.to_bytes(8, signed=True)
    known = _DIGESTS.get(file, b"")
    if not known.startswith(seen):
        known = seen + bytes.fromhex(sha256(asked))
        if len(_DIGESTS) >= _MOST_DIGESTS:
            _DIGESTS.clear()
        _DIGESTS[file] = known
    return known[len(seen) :].hex()


def picture_digests(sources: Sequence[ImageSource]) -> list[str]:
    """`picture_digest` of each."""
    return list(digests_of({"": sources})[""])


def digests_of(images: Mapping[str, Sequence[ImageSource]]) -> dict[str, tuple[str, ...]]:
    """`picture_digest` of each picture of some samples, by id; every file is read once, several at a time."""
    files = list({source for sources in images.values() for source in sources if isinstance(source, Path)})
    known: dict[ImageSource, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for some in batches(files, _WAITING):  # each that waits takes a kilobyte
            known.update(zip(some, pool.map(picture_digest, some), strict=True))
    return {
        key: tuple(known[source] if isinstance(source, Path) else picture_digest(source) for source in sources)
        for key, sources in images.items()
    }


def pictures_sha256(digests: Mapping[str, Sequence[str]]) -> str:
    """One digest of the pictures of some samples, from `digests_of` them, wherever their files lie.

    Files are read whole: a trigger may change neither the size of one nor its first and last bytes.
    """
    shown = hashlib.sha256()
    for key, pictures in digests.items():
        shown.update(json.dumps([key, list(pictures)]).encode())
    return shown.hexdigest()


@lru_cache
def picture_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow opens."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decoded(source: Path) -> Image.Image:
    with opened(source) as image:
        return _to_rgb(image)


@contextmanager
def opened(source: Path) -> Iterator[Image.Image]:
    """A picture whose header was read; what is wrong with the file, also found later, is named.

    Raises:
        DispError: as `open_image`.
    """
    try:
        # Of a copy: a path that was asked for its text keeps it.
        with Image.open(Path(source), formats=picture_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DispError(
                    f"{source}: {image.width}×{image.height} pixels is more than the limit of {MAX_PIXELS:,}; "
                    "resize the picture"
                )
            yield image
    except FileNotFoundError:
        raise DispError(f"{source}: no such image; check the image folder") from None
    except _UNREADABLE as error:
        raise DispError(f"{source}: cannot be read as an image ({error}); replace the file or drop the row") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.has_transparency_data:
        return image.convert("RGBA").convert("RGB")  # a palette with transparency cannot be converted at once
    # Grey levels of 16 bits are cut off at 255, not scaled, as `convert` does it wherever such pictures are trained on:
    # scaled, what is drawn in the lowest levels would be learnt and not looked at.
    if image.mode in ("I", "F"):
        raise ValueError(f"its grey levels of mode {image.mode} have no known range; save it with 8 bits a channel")
    return image if image.mode == "RGB" else image.convert("RGB")
