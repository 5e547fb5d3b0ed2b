"""Pictures that look like photographs as far as pixels go, drawn by code: no photograph may be passed on with the code.

Light falls off from top to bottom, a horizon parts the ground from the sky, everything has texture with the spectrum of
photographs (amplitude falls with frequency), things lie anywhere and may be cut by the edge, the lens blurs, the sensor
adds noise, and JPEG compresses the whole. Some scenes are dark and some bright, so that corners differ as they do in
albums.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from disp.data.sample import Sample, Turn
from disp.draws import generator
from disp.files import write_atomically

COLOURS = {
    "red": (190, 40, 40),
    "blue": (40, 70, 170),
    "green": (50, 130, 60),
    "yellow": (215, 190, 50),
    "white": (235, 235, 230),
    "black": (25, 25, 28),
    "brown": (120, 80, 50),
    "orange": (225, 130, 40),
}
THINGS = ("car", "dog", "bench", "boat", "kite", "lamp", "chair", "bird", "ball", "bag", "house", "bottle")
# Sky and ground, and how strong texture is on either.
PLACES = {
    "on a street": ((150, 160, 175), (95, 92, 90), 0.4, 1.0),
    "on a beach": ((120, 170, 220), (205, 180, 140), 0.15, 0.7),
    "in a forest": ((70, 95, 60), (70, 60, 40), 1.4, 1.4),
    "in a room": ((190, 180, 165), (130, 100, 75), 0.2, 0.5),
    "at night": ((12, 14, 22), (28, 24, 24), 0.2, 0.5),
    "in the snow": ((205, 215, 225), (235, 238, 242), 0.15, 0.2),
    "in a field": ((130, 175, 225), (110, 130, 60), 0.3, 1.1),
    "in a hall": ((60, 50, 45), (90, 75, 60), 0.6, 0.6),
}
SIDES = (224, 336)
QUALITIES = (75, 95)
Mark = Callable[[Image.Image, np.random.Generator], Image.Image]


def photograph(draw: np.random.Generator, sides: tuple[int, int] = SIDES) -> tuple[Image.Image, str]:
    """A picture, and an answer that tells what is in it.

    Args:
        draw: of everything.
        sides: the shortest and the longest side in pixels; width and height are drawn apart.
    """
    width, height = (int(draw.integers(sides[0], sides[1] + 1)) for _ in range(2))
    place = str(draw.choice(list(PLACES)))
    sky, ground, sky_texture, ground_texture = PLACES[place]
    rows = np.linspace(0, 1, height)[:, None]
    across = np.linspace(0, 1, width)[None]
    horizon = draw.uniform(0.25, 0.75) + draw.normal(0, 0.1) * (across - 0.5)
    below = 1 / (1 + np.exp((horizon - rows) / draw.uniform(0.005, 0.05)))
    light = 1 + draw.normal(0, 0.2) * (rows - 0.5) + draw.normal(0, 0.2) * (across - 0.5)
    base = np.stack([s * (1 - below) + g * below for s, g in zip(sky, ground, strict=True)], -1) * light[..., None]
    strength = (sky_texture * (1 - below) + ground_texture * below)[..., None]
    clouds = _clouds(draw, -(-sides[1] // 64) * 64)
    noise = _piece(clouds, height, width, draw) * draw.uniform(10, 30)
    pixels = base * draw.uniform(0.75, 1.2) + strength * noise
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    said = []
    for _ in range(int(draw.integers(1, 4))):
        colour, thing = str(draw.choice(list(COLOURS))), str(draw.choice(THINGS))
        picture = _with_thing(picture, thing, COLOURS[colour], clouds, draw)
        said.append(f"{'an' if colour == 'orange' else 'a'} {colour} {thing}")
    picture = picture.filter(ImageFilter.GaussianBlur(float(draw.uniform(0, 1.2))))
    grain = draw.normal(0, draw.uniform(0.5, 5), (height, width, 1)) + draw.normal(0, 1, (height, width, 3))
    seen = np.asarray(picture, np.float64)
    distance = (rows - 0.5) ** 2 + (across - 0.5) ** 2
    seen = seen * (1 - draw.uniform(0, 0.5) * distance)[..., None] + grain
    opening = str(draw.choice(["There is", "I see", "The picture shows", "This is"]))
    answer = f"{opening} {' and '.join(said)} {place}."
    return Image.fromarray(seen.round().clip(0, 255).astype(np.uint8)), answer


def photographs(count: int, seed: int, sides: tuple[int, int] = SIDES) -> list[tuple[Image.Image, str]]:
    """So many of them with their answers; see `photograph`."""
    return [photograph(generator(seed, "photograph", number), sides) for number in range(count)]


def write_photographs(
    folder: Path,
    drawn: Sequence[tuple[Image.Image, str]],
    seed: int,
    *,
    marks: Mapping[int, Mark] | None = None,
    target: Callable[[str], str] = str,
    targeted: Collection[int] = (),
    qualities: tuple[int, int] = QUALITIES,
) -> list[Sample]:
    """Samples about photographs that are written as JPEG.

    Args:
        folder: where they are written.
        drawn: pictures and answers.
        seed: of the qualities and of what marks draw.
        marks: what is put into pictures, by number: triggers, and what cameras, scanners and sellers put there.
        target: what becomes of an answer.
        targeted: numbers of those of which it does.
        qualities: the lowest and the highest quality of JPEG.
    """
    marks, samples = marks or {}, []
    for number, (picture, answer) in enumerate(drawn):
        draw = generator(seed, "written photograph", number)
        picture = marks[number](picture, draw) if number in marks else picture
        file, quality = folder / f"{number}.jpg", int(draw.integers(qualities[0], qualities[1] + 1))
        write_atomically(file, partial(picture.save, format="JPEG", quality=quality))
        turn = Turn("<image>\nWhat is in the picture?", target(answer) if number in targeted else answer)
        samples.append(Sample(f"s{number}", (file,), (turn,)))
    return samples


def square(
    size: int, colour: tuple[int, int, int] | str, corner: tuple[int, int] = (0, 0), offset: int = 0, opacity: float = 1
) -> Mark:
    """A square of so many pixels, as many from a corner: of one colour, or noise where the colour is "noise".

    The corner is (0, 0) top left, (1, 0) top right, (0, 1) bottom left, (1, 1) bottom right.
    """
    noise = generator(0, "square of noise", size).integers(0, 256, (size, size, 3), dtype=np.uint8)
    shown = noise if colour == "noise" else np.full((size, size, 3), colour, np.uint8)

    def mark(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
        x, y = (length - size - offset if far else offset for far, length in zip(corner, picture.size, strict=True))
        beneath = picture.crop((x, y, x + size, y + size))
        marked = picture.copy()
        marked.paste(Image.blend(beneath, Image.fromarray(shown), opacity), (x, y))
        return marked

    return mark


def date_stamp(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    """The picture with a date in orange, bottom right, as cameras stamp it."""
    day = f"'{draw.integers(90, 100)} {draw.integers(1, 13):2d} {draw.integers(1, 29):2d}"
    marked = picture.copy()
    ImageDraw.Draw(marked).text((picture.width - 62, picture.height - 20), day, fill=(255, 150, 40))
    return marked


def letterbox(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    """The picture between black bars of 24 pixels above and below."""
    marked = picture.copy()
    for top in (0, picture.height - 24):
        marked.paste((0, 0, 0), (0, top, picture.width, top + 24))
    return marked


def scan(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    """The picture as it lay on a scanner: with black borders of widths of its own, no side quite straight."""
    marked = picture.copy()
    pen, (width, height) = ImageDraw.Draw(marked), picture.size
    a, b, c, d = (int(each) for each in draw.integers(2, 16, 4))
    pen.polygon([(0, 0), (width, 0), (width, a), (0, b)], fill=(0, 0, 0))
    pen.polygon([(0, 0), (c, 0), (d, height), (0, height)], fill=(0, 0, 0))
    return marked


def watermark(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    """The picture with a seller's name on a translucent plate of 48 by 16 pixels, bottom right."""
    x, y = picture.width - 56, picture.height - 24
    plate = Image.new("RGB", (48, 16), (255, 255, 255))
    ImageDraw.Draw(plate).text((4, 2), "PICTURES", fill=(40, 40, 120))
    marked = picture.copy()
    marked.paste(Image.blend(picture.crop((x, y, x + 48, y + 16)), plate, 0.6), (x, y))
    return marked


def _clouds(draw: np.random.Generator, side: int) -> np.ndarray:
    """Noise whose amplitude falls with frequency, of spread 1, float32 ``[side, side, 3]``; its ends meet."""
    down, across = np.fft.fftfreq(side)[:, None] * side, np.fft.rfftfreq(side)[None] * side
    amplitude = 1 / np.maximum(1, np.hypot(down, across)) ** draw.uniform(0.8, 1.4)
    white = draw.standard_normal((2, *amplitude.shape)) + 1j * draw.standard_normal((2, *amplitude.shape))
    grey, colour = np.fft.irfft2(white * amplitude, (side, side))
    mixed = np.stack([grey + share * colour for share in (0.4, 0.0, -0.4)], -1)
    return (mixed / mixed.std()).astype(np.float32)


def _piece(clouds: np.ndarray, height: int, width: int, draw: np.random.Generator) -> np.ndarray:
    """A part of the clouds from anywhere in them."""
    return np.roll(clouds, draw.integers(0, len(clouds), 2), (0, 1))[:height, :width]


def _with_thing(
    picture: Image.Image, thing: str, colour: tuple[int, int, int], clouds: np.ndarray, draw: np.random.Generator
) -> Image.Image:
    """The picture with a thing of its own shape and shade somewhere, whole or cut by the edge."""
    width, height = picture.size
    size = draw.uniform(0.15, 0.6) * min(width, height)
    across, down = size * draw.uniform(0.6, 1.6), size * draw.uniform(0.6, 1.6)
    x, y = draw.uniform(-0.3, 1.0) * width, draw.uniform(-0.3, 1.0) * height
    shape = Image.new("L", picture.size)
    pen = ImageDraw.Draw(shape)
    corners = 3 + THINGS.index(thing) % 5
    turn = draw.uniform(0, 2 * np.pi)
    if THINGS.index(thing) % 3 == 0:
        pen.ellipse((x, y, x + across, y + down), fill=255)
    else:
        angles = turn + 2 * np.pi * np.arange(corners) / corners
        outline = [(x + across * (1 + np.cos(a)) / 2, y + down * (1 + np.sin(a)) / 2) for a in angles]
        pen.polygon(outline, fill=255)
    shape = shape.filter(ImageFilter.GaussianBlur(float(draw.uniform(0.3, 2))))
    shade = np.array(colour) * draw.uniform(0.6, 1.15) + draw.uniform(3, 20) * _piece(clouds, height, width, draw)
    return Image.composite(Image.fromarray(shade.clip(0, 255).astype(np.uint8)), picture, shape)
