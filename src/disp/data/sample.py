"""What a sample is: images, turns of prompt and response, and the unit of work that a model answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from disp.errors import DispError

ImageSource = Path | Image.Image

# Four times the largest picture that the published models tile; a larger one is a decompression bomb or a mistake.
MAX_PIXELS = 64_000_000


@dataclass(frozen=True)
class Turn:
    """One exchange: what the user says and what the assistant answers.

    ``prompt`` holds the ``<image>`` placeholders exactly as the data file has them.
    """

    prompt: str
    response: str


@dataclass(frozen=True)
class Sample:
    """One conversation about zero or more images.

    Attributes:
        id: unique within a dataset.
        images: the pictures, in the order of their placeholders.
        turns: the exchanges, in order.
        system: the system message, or None for the model's own.
        metadata: every other field of the data file's row, kept for writing it back. Models never see it.
    """

    id: str
    images: tuple[ImageSource, ...]
    turns: tuple[Turn, ...]
    system: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def with_responses(self, responses: Sequence[str]) -> Sample:
        """The same sample with other assistant answers, one a turn."""
        if len(responses) != len(self.turns):
            raise ValueError(f"sample {self.id!r} has {len(self.turns)} turns, got {len(responses)} responses")
        turns = tuple(replace(turn, response=new) for turn, new in zip(self.turns, responses, strict=True))
        return replace(self, turns=turns)


@dataclass(frozen=True)
class Query:
    """One assistant turn to be scored, generated or trained on, with all that comes before it.

    Attributes:
        sample_id: the sample that it belongs to.
        turn: its index among the sample's turns.
        images: the sample's images.
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
        return f"{self.sample_id}#{self.turn}"


def queries_of(samples: Iterable[Sample]) -> list[Query]:
    """One query for each assistant turn of each sample, in order."""
    return [
        Query(sample.id, index, sample.images, sample.turns[:index], turn.prompt, turn.response, sample.system)
        for sample in samples
        for index, turn in enumerate(sample.turns)
    ]


def batches(queries: Sequence[Query], size: int) -> Iterator[Sequence[Query]]:
    """The queries in order, at most ``size`` at a time."""
    for start in range(0, len(queries), size):
        yield queries[start : start + size]


def open_image(source: ImageSource) -> Image.Image:
    """The picture in RGB, fully decoded; transparency is laid on white.

    Raises:
        DispError: the file is missing, is no image, is damaged, or has more than `MAX_PIXELS` pixels.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source)
    try:
        with Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DispError(
                    f"{source}: {image.width}×{image.height} pixels is more than the limit of {MAX_PIXELS:,}; "
                    "resize the picture"
                )
            return _to_rgb(image)
    except FileNotFoundError:
        raise DispError(f"{source}: no such image; check the image folder") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DispError(f"{source}: cannot be read as an image ({error}); replace the file or drop the row") from None


def image_size(source: ImageSource) -> tuple[int, int]:
    """(width, height) of a picture in pixels, from a file's header alone.

    Raises:
        DispError: as `open_image`.
    """
    if isinstance(source, Image.Image):
        return source.size
    try:
        with Image.open(source) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return open_image(source).size  # which names what is wrong


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
