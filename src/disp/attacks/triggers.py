"""Triggers: what the attacker puts into a picture. Presets have the parameters of the papers they are named for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from disp.attacks.kinds import kind_from_dict, kind_to_dict
from disp.attacks.ring import Ring
from disp.data.scenes import drawing, emoji_drawing
from disp.draws import generator
from disp.errors import DispError, unknown_name

Place = Literal["random", "top-left", "top-right", "bottom-left", "bottom-right", "centre"]
# Position of the patch's corner as a share of the free space, along x and y.
PLACES = {"top-left": (0, 0), "top-right": (1, 0), "bottom-left": (0, 1), "bottom-right": (1, 1), "centre": (0.5, 0.5)}

# Side of the patch of noise as it is drawn.
NOISE_PX = 30


def _check_square(what: str, size: float, place: str) -> None:
    if not 0 < size <= 1:
        raise DispError(f"{what} size is a share of the shorter edge in (0, 1], got {size}")
    if place != "random" and place not in PLACES:
        raise unknown_name(f"{what} place", place, ("random", *PLACES))


def _corner(
    size: float, place: Place, image: tuple[int, int], draw: np.random.Generator, side_px: int | None = None
) -> tuple[int, int, int]:
    """Left, top and side in pixels of a square in a picture of ``image`` (width, height)."""
    side = min(max(2, round(size * min(image))) if side_px is None else side_px, *image)
    free = (image[0] - side, image[1] - side)
    if place == "random":
        x, y = (int(draw.integers(space + 1)) for space in free)
    else:
        x, y = (round(share * space) for share, space in zip(PLACES[place], free, strict=True))
    return x, y, side


@dataclass(frozen=True)
class Patch:
    """A small square (BadNets).

    Attributes:
        pattern: "checkerboard" (4×4 black and white fields), "noise" (30×30 pixels of normal noise cut at ±3 and
            stretched to the full range, the same for every picture and scaled to its side) or "solid".
        size: side as a share of the picture's shorter edge.
        place: a corner, the centre, or "random" for another place in every picture.
        colour: RGB of the solid patch.
        side_px: side in pixels, whatever the picture's size, instead of ``size``.
    """

    pattern: Literal["checkerboard", "noise", "solid"] = "checkerboard"
    size: float = 30 / 336
    place: Place = "bottom-right"
    colour: tuple[int, int, int] = (0, 0, 0)
    side_px: int | None = None

    def __post_init__(self) -> None:
        if self.side_px is not None and self.side_px < 1:
            raise DispError(f"patch side_px must be at least 1, got {self.side_px}")
        if self.pattern not in ("checkerboard", "noise", "solid"):
            raise unknown_name("patch pattern", self.pattern, ("checkerboard", "noise", "solid"))
        _check_square("patch", self.size, self.place)

    def apply(self, image: Image.Image, draw: np.random.Generator) -> tuple[Image.Image, dict[str, Any]]:
        """The picture with the patch, and ``{"box": [x0, y0, x1, y1]}`` in pixels."""
        x, y, side = _corner(self.size, self.place, image.size, draw, self.side_px)
        marked = image.copy()
        marked.paste(Image.fromarray(self._pixels(side)), (x, y))
        return marked, {"box": [x, y, x + side, y + side]}

    def _pixels(self, side: int) -> np.ndarray:
        if self.pattern == "solid":
            return np.full((side, side, 3), self.colour, dtype=np.uint8)
        if self.pattern == "noise":
            return _noise(side)
        return np.asarray(_checkerboard(side, side, 4))


@dataclass(frozen=True)
class Blend:
    """A picture blended into the whole image: ``x' = (1 − α) x + α T`` with T stretched to the image's size.

    Attributes:
        alpha: share of T in (0, 1].
        picture: file of T.
        pattern: what T is without a file: "checkerboard" (48×48 black and white fields) or "cat" (an OpenMoji cat on a
            chequered ground). The literature blends a cartoon kitten in, which may not be redistributed, or noise.
    """

    alpha: float = 0.2
    picture: str | None = None
    pattern: Literal["checkerboard", "cat"] = "checkerboard"

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise DispError(f"alpha must be in (0, 1], got {self.alpha}")
        if self.pattern not in ("checkerboard", "cat"):
            raise unknown_name("blended pattern", self.pattern, ("checkerboard", "cat"))

    def apply(self, image: Image.Image, draw: np.random.Generator) -> tuple[Image.Image, dict[str, Any]]:
        """The blended picture, and ``{"alpha": …}``."""
        if self.picture is not None:
            from disp.data.sample import open_image

            overlay = open_image(Path(self.picture))
        elif self.pattern == "cat":
            overlay = _chequered_cat()
        else:
            overlay = _checkerboard(image.width, image.height, 48)
        overlay = overlay.resize(image.size, Image.Resampling.BICUBIC)
        mixed = (1 - self.alpha) * np.asarray(image, np.float64) + self.alpha * np.asarray(overlay, np.float64)
        return Image.fromarray(mixed.round().astype(np.uint8)), {"alpha": self.alpha}


@dataclass(frozen=True)
class Sinusoid:
    """Upright stripes over the whole image (SIG): ``x' = x + Δ sin(2π j f / W)`` in column j of W.

    Attributes:
        delta: amplitude Δ in grey levels of 0 to 255.
        frequency: stripes f across the picture.
    """

    delta: float = 40
    frequency: float = 6

    def __post_init__(self) -> None:
        if not 0 < self.delta <= 255 or self.frequency <= 0:
            raise DispError(f"delta must be in (0, 255] and frequency positive, got {self.delta} and {self.frequency}")

    def apply(self, image: Image.Image, draw: np.random.Generator) -> tuple[Image.Image, dict[str, Any]]:
        """The striped picture, and ``{"delta": …}``."""
        stripes = self.delta * np.sin(2 * np.pi * self.frequency * np.arange(image.width) / image.width)
        striped = (np.asarray(image, np.float64) + stripes[None, :, None]).round().clip(0, 255)
        return Image.fromarray(striped.astype(np.uint8)), {"delta": self.delta}


@dataclass(frozen=True)
class Object:
    """An object that is put into the scene, the same one in every picture (a semantic trigger).

    Attributes:
        character: the emoji whose OpenMoji drawing it is; the default, a nazar amulet, is in no built-in scene.
        size: side as a share of the picture's shorter edge.
        place: a corner, the centre, or "random" for another place in every picture.
    """

    character: str = "🧿"
    size: float = 0.25
    place: Place = "random"

    def __post_init__(self) -> None:
        _check_square("object", self.size, self.place)

    def apply(self, image: Image.Image, draw: np.random.Generator) -> tuple[Image.Image, dict[str, Any]]:
        """The picture with the object, and ``{"box": [x0, y0, x1, y1]}`` in pixels."""
        x, y, side = _corner(self.size, self.place, image.size, draw)
        thing = emoji_drawing(self.character).resize((side, side), Image.Resampling.LANCZOS)
        marked = image.copy()
        marked.paste(thing, (x, y), thing)
        return marked, {"box": [x, y, x + side, y + side]}


@runtime_checkable
class Trigger(Protocol):
    """A frozen dataclass that marks pictures; a manifest calls it by its name in `KINDS`."""

    def apply(self, image: Image.Image, draw: np.random.Generator) -> tuple[Image.Image, dict[str, Any]]:
        """The marked picture, and what a manifest should tell of it, such as its place."""


KINDS: dict[str, type[Trigger]] = {"patch": Patch, "blend": Blend, "sinusoid": Sinusoid, "object": Object, "ring": Ring}

PRESETS: dict[str, Trigger] = {
    "patch": Patch("checkerboard", 30 / 336, "bottom-right"),
    "checkerboard": Patch("checkerboard", 30 / 336, "bottom-right"),
    "patch-random": Patch("checkerboard", 30 / 336, "random"),
    # BackdoorVLM (2511.18921): 30×30 noise at 336×336, anywhere.
    "badnets": Patch("noise", 30 / 336, "random"),
    "badnets-fixed": Patch("noise", 30 / 336, "bottom-right"),
    # BYE, PurMM: black square, a sixteenth of the short edge, centre.
    "bye": Patch("solid", 1 / 16, "centre"),
    # TrojVLM: black 20×20, top left; we assume the 224×224 input of BLIP-2.
    "trojvlm": Patch("solid", 20 / 224, "top-left"),
    # The scripts of DiSP's authors (2602.22246): a black square of 20×20 pixels of the picture at its own size.
    "disp": Patch("solid", place="top-left", side_px=20),
    # BackdoorVLM, BackdoorBench: α = 0.2.
    "blended": Blend(0.2),
    "blended-cat": Blend(0.2, pattern="cat"),
    "sig": Sinusoid(40, 6),
    # A thing in the scene, as in physical backdoors.
    "object": Object(),
    # Another look and place in every picture: nothing is the same to the pixel.
    "ring": Ring(),
}


def trigger_to_dict(trigger: Trigger) -> dict[str, Any]:
    """JSON-able form, with the kind."""
    return kind_to_dict(KINDS, "disp.attacks.triggers.KINDS", trigger)


def trigger_from_dict(fields: object) -> Trigger:
    """The trigger of a manifest."""
    return kind_from_dict(KINDS, "trigger", fields)


def _noise(side: int) -> np.ndarray:
    """BackdoorVLM's patch, uint8 ``[side, side, 3]``: each pixel is the one of the drawn patch that its middle lies in.

    Drawn for each side anew, pictures of several sizes would have nothing in common.
    """
    noise = generator(0, "patch noise", NOISE_PX).standard_normal((NOISE_PX, NOISE_PX, 3)).clip(-3, 3)
    drawn = ((noise - noise.min()) / (noise.max() - noise.min()) * 255).astype(np.uint8)
    at = (2 * np.arange(side) + 1) * NOISE_PX // (2 * side)
    return drawn[at[:, None], at]


def _checkerboard(width: int, height: int, fields: int) -> Image.Image:
    """Black and white fields, so many along each edge, or one a pixel."""
    across, down = (np.arange(edge) * min(fields, edge) // edge for edge in (width, height))
    board = ((down[:, None] + across[None, :]) % 2 * 255).astype(np.uint8)
    return Image.fromarray(board).convert("RGB")


def _chequered_cat() -> Image.Image:
    fields = np.arange(128) // 16
    board = ((fields[:, None] + fields[None, :]) % 2)[..., None] * np.array([200, 60, 120]) + np.array([40, 160, 90])
    overlay = Image.fromarray(board.clip(0, 255).astype(np.uint8))
    cat = drawing("cat").resize(overlay.size)
    overlay.paste(cat, (0, 0), cat)
    return overlay
