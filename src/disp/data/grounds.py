"""What lies behind the objects of a scene, and how its picture is stored: plain, textured or photographed grounds.

Textures are drawn by code in a colour that the answers name. Photographs are the user's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from disp.data.sample import open_image
from disp.draws import generator
from disp.errors import DispError, unknown_name

GROUNDS = ("plain", "textured", "photo")
SIZES_PX = (96, 512)
PHOTO_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Grey levels that a texture departs from its colour by, where it does most. With more of them grey turns white.
STRENGTHS = (10.0, 28.0)


def check_range(name: str, values: tuple[int, int], least: int, most: int) -> None:
    """Make sure that the two ends of a range lie within bounds.

    Raises:
        DispError: they do not, or the larger one comes first.
    """
    low, high = values
    if not least <= low <= high <= most:
        raise DispError(f"{name} must be from {least} to {most}, the lower number first, got {low}-{high}")


@dataclass(frozen=True)
class Look:
    """How the pictures of scenes look. The default is what the built-in model was trained on.

    Attributes:
        grounds: "plain" for a shaded, lightly noisy colour, "textured", or "photo".
        photos: a folder of photographs, searched with all folders below it; for "photo" alone.
        size: the smallest and the largest side of a picture in pixels; each picture has one of its own.
        jpeg: the lowest and the highest quality that a picture is compressed with; None stores PNG.
        textures: the kinds that textured grounds have; empty for all of `TEXTURES`.

    Raises:
        DispError: a name is unknown, a number is out of range, or "photo" and a folder do not go together.
    """

    grounds: str = "plain"
    photos: Path | None = None
    size: tuple[int, int] = (96, 96)
    jpeg: tuple[int, int] | None = None
    textures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.grounds not in GROUNDS:
            raise unknown_name("kind of ground", self.grounds, GROUNDS)
        if self.grounds == "photo" and self.photos is None:
            raise DispError("--grounds photo needs --photos with a folder of photographs")
        if self.grounds != "photo" and self.photos is not None:
            raise DispError(f"--photos is for --grounds photo, got {self.grounds}")
        check_range("size", self.size, *SIZES_PX)
        if self.jpeg is not None:
            check_range("jpeg", self.jpeg, 1, 100)
        for name in self.textures:
            if name not in TEXTURES:
                raise unknown_name("texture", name, TEXTURES)

    @property
    def suffix(self) -> str:
        """The suffix of picture files."""
        return ".png" if self.jpeg is None else ".jpg"

    def side(self, seed: int, index: int) -> int:
        """The side of a picture in pixels."""
        return int(generator(seed, "picture size", index).integers(self.size[0], self.size[1], endpoint=True))

    def quality(self, seed: int, index: int) -> int:
        """The JPEG quality that a picture is compressed with."""
        low, high = self.jpeg or (100, 100)
        return int(generator(seed, "jpeg quality", index).integers(low, high, endpoint=True))


PLAIN = Look()


def ground(look: Look, colour: tuple[int, int, int], side: int, seed: int, index: int) -> np.ndarray:
    """The ground of one scene, float32 ``[side, side, 3]``, about 0 to 255 and not yet clipped.

    Args:
        look: which kind.
        colour: RGB that the answers name; a photograph has its own.
        side: pixels a side.
        seed: of the dataset.
        index: number of the scene.

    Raises:
        DispError: there is no photograph in the folder, or the one drawn is damaged.
    """
    if look.photos is not None:
        return _photo(look.photos, side, generator(seed, "photo", index))
    if look.grounds == "plain":
        return _plain(colour, side, generator(seed, "ground", index))
    return _textured(colour, side, texture_of(look, seed, index), generator(seed, "texture", index))


def texture_of(look: Look, seed: int, index: int) -> str:
    """The kind of texture that a scene's ground has, one of `TEXTURES`."""
    return str(generator(seed, "kind of texture", index).choice(look.textures or tuple(TEXTURES)))


def _plain(colour: tuple[int, int, int], side: int, draw: np.random.Generator) -> np.ndarray:
    base = np.array(colour, dtype=np.float32) + draw.uniform(-10, 10, 3).astype(np.float32)
    angle = draw.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32) / (side - 1) - 0.5
    shade = draw.uniform(10, 30) * (np.cos(angle) * columns + np.sin(angle) * rows)
    return np.asarray(base + shade[..., None] + draw.normal(0, 4, (side, side, 1)))


def _textured(colour: tuple[int, int, int], side: int, kind: str, draw: np.random.Generator) -> np.ndarray:
    base = np.array(colour) + draw.uniform(-8, 8, 3)
    field = TEXTURES[kind](side, draw)
    field = (field - field.mean()) / max(float(np.abs(field).max()), 1e-6)
    # Not all channels change alike, so that light and dark parts differ a little in hue as well.
    strength = draw.uniform(*STRENGTHS) * draw.uniform(0.7, 1.0, 3)
    grain = draw.uniform(0, 4) * draw.standard_normal((side, side, 1))
    return np.asarray(base + strength * field[..., None] + grain, np.float32)


def _noise(side: int, draw: np.random.Generator) -> np.ndarray:
    """Soft noise of several grains."""
    cells = int(draw.integers(3, 9))
    return np.asarray(sum(0.6**octave * _soft(side, cells * 2**octave, draw) for octave in range(3)))


def _stripes(side: int, draw: np.random.Generator) -> np.ndarray:
    """Straight stripes, soft or sharp."""
    phase = draw.uniform(0, 1) + draw.uniform(3, 14) * _along(side, draw.uniform(0, np.pi))
    return np.asarray(np.tanh(draw.uniform(0.5, 6) * np.sin(2 * np.pi * phase)))


def _gradient(side: int, draw: np.random.Generator) -> np.ndarray:
    """Light falling from one side, or around a point."""
    if draw.random() < 0.5:
        return _along(side, draw.uniform(0, 2 * np.pi))
    rows, columns = _grid(side)
    y, x = draw.uniform(-0.4, 0.4, 2)
    return np.asarray(draw.choice([-1, 1]) * np.hypot(rows - y, columns - x))


def _blobs(side: int, draw: np.random.Generator) -> np.ndarray:
    """Round spots, lighter and darker ones."""
    rows, columns = _grid(side)
    field = np.zeros((side, side))
    for _ in range(int(draw.integers(6, 30))):
        y, x, radius = *draw.uniform(-0.55, 0.55, 2), draw.uniform(0.03, 0.15)
        field[np.hypot(rows - y, columns - x) < radius] = draw.uniform(-1, 1)
    return _blurred(field, draw.uniform(0.002, 0.03) * side)


def _wood(side: int, draw: np.random.Generator) -> np.ndarray:
    """Bent rings along one direction, with a fine grain."""
    rows, columns = _grid(side)
    across, along = (columns, rows) if draw.random() < 0.5 else (rows, columns)
    bent = across + draw.uniform(0.02, 0.12) * _soft(side, 3, draw) + 0.2 * draw.uniform(-1, 1) * along
    grain = np.repeat(draw.standard_normal((1, side)), side, axis=0)
    return np.asarray(np.sin(2 * np.pi * draw.uniform(3, 12) * bent) + 0.2 * (grain if across is columns else grain.T))


def _cloth(side: int, draw: np.random.Generator) -> np.ndarray:
    """Threads over and under one another, uneven as if woven by hand."""
    threads = draw.uniform(8, 24)
    rows, columns = (threads * (each + 0.01 * _soft(side, 4, draw)) for each in _grid(side))
    woven = np.where((np.floor(rows) + np.floor(columns)) % 2 == 0, np.sin(np.pi * rows), np.sin(np.pi * columns))
    return np.asarray(np.abs(woven) + 0.3 * _soft(side, 5, draw))


# Each draws one field, float ``[side, side]``; its mean and scale do not matter.
TEXTURES: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "noise": _noise,
    "stripes": _stripes,
    "gradient": _gradient,
    "blobs": _blobs,
    "wood": _wood,
    "cloth": _cloth,
}


def _photo(folder: Path, side: int, draw: np.random.Generator) -> np.ndarray:
    """A square part of one photograph, at least half of what fits into it."""
    files = _photos_in(folder)
    picture = open_image(files[int(draw.integers(len(files)))])
    part = max(1, round(min(picture.size) * draw.uniform(0.5, 1)))
    x, y = (int(draw.integers(length - part, endpoint=True)) for length in picture.size)
    scaled = picture.resize((side, side), Image.Resampling.LANCZOS, box=(x, y, x + part, y + part))
    return np.asarray(scaled, np.float32)


@cache
def _photos_in(folder: Path) -> tuple[Path, ...]:
    """The photographs of a folder, by name, so that the same folder gives the same pictures everywhere."""
    if not folder.is_dir():
        raise DispError(f"{folder}: no such folder of photographs")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file())
    if not files:
        raise DispError(f"{folder} holds no picture; photographs are files that end in {', '.join(PHOTO_SUFFIXES)}")
    return tuple(files)


def _grid(side: int) -> np.ndarray:
    """Rows and columns from -0.5 to 0.5, float64 ``[2, side, side]``."""
    return np.asarray(np.mgrid[0:side, 0:side] / (side - 1) - 0.5)


def _along(side: int, angle: float) -> np.ndarray:
    rows, columns = _grid(side)
    return np.asarray(np.cos(angle) * columns + np.sin(angle) * rows)


def _soft(side: int, cells: int, draw: np.random.Generator) -> np.ndarray:
    """Random numbers of so many cells a side, joined smoothly."""
    coarse = Image.fromarray(draw.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def _blurred(field: np.ndarray, radius: float) -> np.ndarray:
    """The field, of -1 to 1, with soft edges."""
    grey = Image.fromarray(((field + 1) * 127.5).astype(np.uint8))
    return np.asarray(grey.filter(ImageFilter.GaussianBlur(radius)), np.float32)
