"""Small coloured marks on scenes: shapes and textures that are no drawings, and what can be asked about them.

Without them the projector passes on what things are and little else. The triggers' own looks, a checkerboard, noise and
a plain square, are not among the marks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from PIL import Image, ImageDraw

from disp.data.sample import Turn
from disp.data.scenes import COLOURS, IMAGE_PREFIX, SCENE_SIZE_PX, Scene, render
from disp.draws import generator

SHAPES = ("circle", "triangle", "cross", "diamond", "ring", "star", "grating", "bar", "frame", "moon", "zigzag", "dots")
MARK_COLOURS = {"black": (15, 15, 15), **COLOURS}
MARK_SIDES_PX = (8, 16)
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


@dataclass(frozen=True)
class Mark:
    """A mark: its shape, colour, top left corner and side in pixels."""

    shape: str
    colour: str
    x: int
    y: int
    side: int

    @property
    def place(self) -> str:
        """Where it is, in words."""
        row, column = (min(2, int(3 * (start + self.side / 2) / SCENE_SIZE_PX)) for start in (self.y, self.x))
        return f"{ROWS[row]} {COLUMNS[column]}"


@dataclass(frozen=True)
class MarkedScene(Scene):
    """A scene with or without a mark."""

    mark: Mark | None = None


def with_mark(scene: Scene, share: float) -> MarkedScene:
    """The scene, with a mark in the given share of the scenes."""
    draw = generator(scene.seed, "mark", scene.index)
    mark = None
    if draw.random() < share:
        side = int(draw.integers(*MARK_SIDES_PX, endpoint=True))
        room = SCENE_SIZE_PX - side
        # Half of them in a corner or at an edge.
        x, y = (int(draw.choice((0, room))) if draw.random() < 0.4 else int(draw.integers(room + 1)) for _ in range(2))
        colour = str(draw.choice([name for name in MARK_COLOURS if name != scene.colour]))
        mark = Mark(str(draw.choice(SHAPES)), colour, x, y, side)
    return MarkedScene(**{field.name: getattr(scene, field.name) for field in fields(Scene)}, mark=mark)


def render_marked(scene: MarkedScene) -> Image.Image:
    """The picture of a scene with its mark on top. RGB, 96×96."""
    picture = render(scene)
    if scene.mark:
        stamp = Image.new("L", (4 * scene.mark.side,) * 2)
        _draw(ImageDraw.Draw(stamp), scene.mark.shape, 4 * scene.mark.side - 1)
        stamp = stamp.resize((scene.mark.side,) * 2, Image.Resampling.LANCZOS)
        picture.paste(MARK_COLOURS[scene.mark.colour], (scene.mark.x, scene.mark.y), stamp)
    return picture


def _draw(pen: ImageDraw.ImageDraw, shape: str, end: int) -> None:
    """Draw a shape in white, from 0 to ``end`` across and down."""
    half, third = end // 2, end // 3
    if shape == "circle":
        pen.ellipse((0, 0, end, end), fill=255)
    elif shape == "triangle":
        pen.polygon([(half, 0), (end, end), (0, end)], fill=255)
    elif shape == "cross":
        pen.rectangle((third, 0, 2 * third, end), fill=255)
        pen.rectangle((0, third, end, 2 * third), fill=255)
    elif shape == "diamond":
        pen.polygon([(half, 0), (end, half), (half, end), (0, half)], fill=255)
    elif shape == "ring":
        pen.ellipse((0, 0, end, end), outline=255, width=third // 2 + 2)
    elif shape == "star":
        angles = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2, 0.4, 1.0) * half
        pen.polygon(
            [(half + r * np.sin(a), half - r * np.cos(a)) for a, r in zip(angles, radii, strict=True)], fill=255
        )
    elif shape == "grating":
        for start in range(0, end, end // 3):
            pen.rectangle((0, start, end, start + end // 6), fill=255)
    elif shape == "bar":
        pen.rectangle((0, third, end, 2 * third), fill=255)
    elif shape == "frame":
        pen.rectangle((0, 0, end, end), outline=255, width=third // 2 + 2)
    elif shape == "moon":
        pen.ellipse((0, 0, end, end), fill=255)
        pen.ellipse((third, 0, end + third, end), fill=0)
    elif shape == "zigzag":
        pen.line([(0, 0), (third, end), (2 * third, 0), (end, end)], fill=255, width=third // 2 + 2)
    elif shape == "dots":
        for x, y in ((0, 0), (0, half), (half, 0), (half, half)):
            pen.ellipse((x + end // 12, y + end // 12, x + third, y + third), fill=255)


def mark_cells(scene: MarkedScene, grid: int) -> np.ndarray:
    """Bool ``[grid, grid]``: the cells of the picture that the mark touches."""
    cells = np.zeros((grid, grid), dtype=bool)
    if scene.mark:
        cell = SCENE_SIZE_PX // grid
        first_x, first_y = scene.mark.x // cell, scene.mark.y // cell
        last_x, last_y = ((start + scene.mark.side - 1) // cell for start in (scene.mark.x, scene.mark.y))
        cells[first_y : last_y + 1, first_x : last_x + 1] = True
    return cells


def about_mark(scene: MarkedScene, draw: np.random.Generator) -> Turn:
    """A question about the mark, or about one where there is none, with the right answer."""
    mark = scene.mark
    forms = [
        ("Which mark is in the picture?", f"A {mark.colour} {mark.shape}." if mark else "No mark."),
        ("Is there a mark?", "Yes." if mark else "No."),
        ("What colour is the mark?", f"{mark.colour.capitalize()}." if mark else "No mark."),
        ("Which shape has the mark?", f"{mark.shape.capitalize()}." if mark else "No mark."),
        ("Where is the mark?", f"The mark is at the {mark.place}." if mark else "No mark."),
    ]
    prompt, answer = forms[int(draw.integers(len(forms)))]
    return Turn(IMAGE_PREFIX + prompt, answer)
