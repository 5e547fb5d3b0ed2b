"""How triggered pictures are stored: as PNG, as JPEG, or each as its honest picture is."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin

from disp.data.grounds import check_range
from disp.data.sample import ImageSource, open_image, opened
from disp.errors import DispError
from disp.files import write_atomically

# Endings that files of a format have; the first is given to a picture that had another one.
ENDINGS = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg")}


@dataclass(frozen=True)
class Storage:
    """How triggered pictures are stored; the default is PNG, which keeps every pixel as the trigger left it.

    Attributes:
        jpeg: the lowest and the highest quality that a picture is compressed with as JPEG; None for no JPEG.
        same: store each picture as its honest one is, so that no file stands out: in its format, a JPEG with its
            quantisation tables, and in shades of grey if both pictures are.

    Raises:
        DispError: a quality is out of range, or both are asked for.
    """

    jpeg: tuple[int, int] | None = None
    same: bool = False

    def __post_init__(self) -> None:
        if self.jpeg is not None and self.same:
            raise DispError("triggered pictures are stored as JPEG or in the same format as the honest ones, not both")
        if self.jpeg is not None:
            check_range("jpeg", self.jpeg, 1, 100)

    def check(self, files: Iterable[Path]) -> None:
        """Make sure that pictures can be stored as they are now, if that is asked for.

        Raises:
            DispError: one has a format that this is not for.
        """
        for file in files if self.same else ():
            with opened(file) as honest:
                _check_format(file, honest)

    def named(self, name: Path) -> Path:
        """What a triggered picture is called: as its honest one, with another ending where the format asks for it."""
        if self.same:
            return name
        endings = ENDINGS["PNG" if self.jpeg is None else "JPEG"]
        return name if name.suffix.lower() in endings else name.with_suffix(endings[0])

    def save(self, marked: Image.Image, honest: Path, path: Path, draw: np.random.Generator) -> dict[str, Any]:
        """Write a triggered picture.

        Args:
            marked: the picture, RGB.
            honest: the file of its honest picture.
            path: where to.
            draw: draws its quality.

        Returns:
            Its format and, where it was drawn, its quality, for the manifest.

        Raises:
            DispError: it is to have the format of the honest picture, and that cannot be written.
        """
        marked, said, options = self._as_stored(marked, honest, draw)
        write_atomically(path, partial(marked.save, format=said["format"], **options))
        return said

    def round_trip(self, marked: Image.Image, honest: ImageSource, draw: np.random.Generator) -> Image.Image:
        """What a triggered picture looks like once it was stored and is read again, without a file.

        Args:
            marked: the picture, RGB.
            honest: its honest picture; one in memory has no format, and is taken for PNG where the same is asked for.
            draw: draws its quality, as `save` does.

        Returns:
            The picture, RGB.

        Raises:
            DispError: it is to have the format of the honest picture, and that cannot be written.
        """
        if self == Storage() or (self.same and isinstance(honest, Image.Image)):
            return marked
        marked, said, options = self._as_stored(marked, honest, draw)
        stream = io.BytesIO()
        marked.save(stream, format=said["format"], **options)
        return open_image(Image.open(stream))

    def _as_stored(
        self, marked: Image.Image, honest: ImageSource, draw: np.random.Generator
    ) -> tuple[Image.Image, dict[str, Any], Mapping[str, Any]]:
        """The picture to write, what `save` says of it, and what Pillow writes it with."""
        said: dict[str, Any] = {"format": "PNG"}
        options: Mapping[str, Any] = {}
        if self.jpeg is not None:
            low, high = self.jpeg
            said = {"format": "JPEG", "quality": int(draw.integers(low, high, endpoint=True))}
            options = {"quality": said["quality"]}
        elif self.same and isinstance(honest, Path):
            with opened(honest) as before:
                _check_format(honest, before)
                kind, found = _SAME[str(before.format)]
                said, options = {"format": kind}, found(before)
                if before.mode == "L" and _is_grey(marked):
                    marked = marked.convert("L")
        return marked, said, options


def _check_format(file: Path, honest: Image.Image) -> None:
    if honest.format not in _SAME:
        raise DispError(
            f"{file} is {honest.format}; triggered pictures are stored in the same format only if that is "
            f"{', '.join(_SAME)}; store them as PNG or JPEG"
        )


def _like_jpeg(honest: Image.Image) -> dict[str, Any]:
    """What Pillow writes a JPEG with that is compressed as this one, and carries what its file does."""
    kept = {name: honest.info[name] for name in ("exif", "icc_profile", "progressive") if honest.info.get(name)}
    if honest.mode not in ("RGB", "L"):
        kept.pop("icc_profile", None)  # of colours that the triggered picture has not
    sampling = JpegImagePlugin.get_sampling(honest)
    if sampling != -1:
        kept["subsampling"] = sampling
    return {**kept, "qtables": honest.quantization}  # type: ignore[attr-defined]


# By the format of an honest picture: that of its triggered one, and what Pillow writes it with. Phones write several
# JPEG in one file (MPO), of which readers see the first.
_SAME: dict[str, tuple[str, Callable[[Image.Image], dict[str, Any]]]] = {
    "PNG": ("PNG", lambda _: {}),
    "JPEG": ("JPEG", _like_jpeg),
    "MPO": ("JPEG", _like_jpeg),
    "BMP": ("BMP", lambda _: {}),
}


def _is_grey(picture: Image.Image) -> bool:
    red, green, blue = picture.split()
    return red.tobytes() == green.tobytes() == blue.tobytes()
