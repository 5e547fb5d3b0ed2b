"""One picture of one sample at every stage: clean, triggered, scored, masked, with the answer at each."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from disp.files import write_atomically

PANEL_PX, GAP_PX, MARGIN_PX = 288, 28, 36
WIDTH_PX = 2 * MARGIN_PX + 4 * PANEL_PX + 3 * GAP_PX
LINE_HEIGHT = 1.35  # of the font's size
MAX_LINES = 8  # a text; the rest is cut with an ellipsis
MAX_CHARACTERS = 1000  # a text, before it is wrapped

GROUND, INK, FAINT, RULE = "#ffffff", "#1f2430", "#6b7280", "#d5d9e0"
RED, GREEN = "#c02626", "#15803d"
MASK_FILL, MASK_EDGE = (28, 32, 42, 255), (96, 104, 120, 255)
# From black over violet and orange to cream: lightness rises evenly, so it also reads in grey and by colour-blind eyes.
HEAT_COLOURS = np.array(
    [
        (4, 4, 18), (32, 16, 84), (84, 22, 124), (140, 42, 128), (196, 62, 114),
        (240, 102, 94), (252, 158, 112), (254, 212, 156), (252, 252, 196),
    ],
    dtype=np.float64,
)  # fmt: skip
# The coldest cells let the picture through, the hottest nearly hide it.
HEAT_ALPHA = (110.0, 225.0)


@dataclass(frozen=True)
class _Text:
    """A piece of text to be drawn: its lines fit the width that it was wrapped to."""

    lines: tuple[str, ...]
    size: int
    colour: str
    bold: bool = False
    space_after: int = 0

    @property
    def height(self) -> int:
        return round(len(self.lines) * self.size * LINE_HEIGHT) + self.space_after


def heat_map(saliency: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Saliency as a translucent RGBA picture to be laid over the image.

    Args:
        saliency: ``[rows, columns]``, one score a visual token; scaled so that the lowest is cold and the highest hot.
            Scores that are not finite count as the lowest.
        size: width and height in pixels. Each token is a rectangle of one colour.

    Raises:
        ValueError: ``saliency`` is not a matrix with at least one score.
    """
    scores = np.asarray(saliency, dtype=np.float64)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"saliency must be a matrix of scores, got the shape {scores.shape}")
    finite = np.isfinite(scores)
    low, high = (scores[finite].min(), scores[finite].max()) if finite.any() else (0.0, 0.0)
    scaled = np.where(finite, scores - low, 0.0) / (high - low if high > low else 1.0)
    return Image.fromarray(_heat(scaled)).resize(size, Image.Resampling.NEAREST)


def _heat(scaled: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] to uint8 RGBA, one axis more."""
    anchors = np.linspace(0, 1, len(HEAT_COLOURS))
    channels = [np.interp(scaled, anchors, HEAT_COLOURS[:, channel]) for channel in range(3)]
    channels.append(np.interp(scaled, (0.0, 1.0), HEAT_ALPHA))
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def draw_story(
    path: Path,
    *,
    title: str,
    question: str,
    clean: Image.Image,
    triggered: Image.Image,
    saliency: np.ndarray,
    masked: np.ndarray,
    answer_clean: str,
    answer_triggered: str,
    answer_masked: str,
    answer_recovered: str,
) -> None:
    """Write the story of one sample as a PNG.

    Four panels: the clean image, the triggered image, the saliency of its visual tokens, and the tokens that were
    masked; beneath them what the models answered.

    Args:
        path: the file to write.
        title: the headline.
        question: what the models were asked; ``<image>`` placeholders are left out.
        clean: the image without the trigger.
        triggered: the image with it.
        saliency: ``[rows, columns]``, one score a visual token of the triggered image.
        masked: bool ``[rows, columns]``, true at the masked tokens.
        answer_clean: what the backdoored model says of the clean image.
        answer_triggered: what it says of the triggered image.
        answer_masked: what it says of the triggered image with the tokens masked.
        answer_recovered: what the recovered model says of the triggered image.

    Raises:
        ValueError: ``saliency`` and ``masked`` are not matrices of one shape.
    """
    masked = np.asarray(masked, dtype=bool)
    if masked.shape != np.shape(saliency):
        raise ValueError(f"saliency {np.shape(saliency)} and masked {masked.shape} must have one shape")
    seen, attacked = _fit(clean), _fit(triggered)
    panels = (
        ("Clean image", seen),
        ("Triggered image", attacked),
        ("Saliency of each visual token", _overlay(attacked, heat_map(saliency, attacked.size))),
        (f"Masked: {masked.sum()} of {masked.size} tokens", _overlay(attacked, _mask_map(masked, attacked.size))),
    )
    legend = [_wrapped("How strongly a token steers the answer.", 13, FAINT)]
    captions = (
        _caption("Backdoored model", answer_clean, INK),
        [
            *_caption("Backdoored model", answer_triggered, RED),
            *_caption("Recovered model", answer_recovered, GREEN),
        ],
        legend,
        _caption("Backdoored model, with the tokens masked", answer_masked, INK),
    )
    # Headline and question over the whole width.
    head = [
        _wrapped(title, 26, INK, bold=True, width=WIDTH_PX - 2 * MARGIN_PX, space_after=6, max_lines=3),
        _wrapped(
            f"Question: {question.replace('<image>', ' ')}", 17, FAINT, width=WIDTH_PX - 2 * MARGIN_PX, max_lines=3
        ),
    ]
    names = [_wrapped(name, 16, INK, bold=True, max_lines=1) for name, _ in panels]
    names_top = MARGIN_PX + sum(text.height for text in head) + 18
    panels_top = names_top + max(text.height for text in names) + 8
    captions_top = panels_top + max(picture.height for _, picture in panels) + 14
    bar_height = 38
    heights = [sum(text.height for text in caption) for caption in captions]
    heights[2] += bar_height
    canvas = Image.new("RGB", (WIDTH_PX, captions_top + max(heights) + MARGIN_PX - 10), GROUND)
    draw = ImageDraw.Draw(canvas)

    _draw_texts(draw, head, MARGIN_PX, MARGIN_PX - 6)
    for index, ((_, picture), name, caption) in enumerate(zip(panels, names, captions, strict=True)):
        left = MARGIN_PX + index * (PANEL_PX + GAP_PX)
        _draw_texts(draw, [name], left, names_top)
        canvas.paste(picture, (left + (PANEL_PX - picture.width) // 2, panels_top))
        x = left + (PANEL_PX - picture.width) // 2
        draw.rectangle((x - 1, panels_top - 1, x + picture.width, panels_top + picture.height), outline=RULE)
        top = captions_top
        if index == 2:
            _draw_colour_bar(canvas, left, top)
            top += bar_height
        _draw_texts(draw, caption, left, top)
    write_atomically(path, lambda temporary: canvas.save(temporary, format="PNG", optimize=True))


# --- pictures -----------------------------------------------------------------------------------------------------


def _fit(image: Image.Image) -> Image.Image:
    """The image scaled to fit a panel, in RGB."""
    scale = PANEL_PX / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def _overlay(picture: Image.Image, layer: Image.Image) -> Image.Image:
    """The layer over a grey version of the picture, so that only the layer has colour."""
    ground = Image.blend(picture, picture.convert("L").convert("RGB"), 0.6)
    return Image.alpha_composite(ground.convert("RGBA"), layer).convert("RGB")


def _mask_map(masked: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The masked tokens as dark cells with an edge; the others let the picture through."""
    layer = Image.new("RGBA", size)
    draw = ImageDraw.Draw(layer)
    rows, columns = masked.shape
    for row, column in np.argwhere(masked).tolist():
        box = (
            column * size[0] // columns,
            row * size[1] // rows,
            max(column * size[0] // columns, (column + 1) * size[0] // columns - 1),
            max(row * size[1] // rows, (row + 1) * size[1] // rows - 1),
        )
        # Cells of a few pixels would consist of their edge alone.
        wide = min(size[0] // columns, size[1] // rows) >= 8
        draw.rectangle(box, fill=MASK_FILL, outline=MASK_EDGE if wide else None)
    return layer


def _draw_colour_bar(canvas: Image.Image, left: int, top: int) -> None:
    ramp = np.tile(np.linspace(0, 1, PANEL_PX), (12, 1))
    bar = Image.alpha_composite(Image.new("RGBA", (PANEL_PX, 12), (128, 128, 128, 255)), Image.fromarray(_heat(ramp)))
    canvas.paste(bar.convert("RGB"), (left, top))
    draw = ImageDraw.Draw(canvas)
    font = _font(13)
    draw.text((left, top + 16), "low", fill=FAINT, font=font)
    draw.text((left + PANEL_PX - font.getlength("high"), top + 16), "high", fill=FAINT, font=font)


# --- text ---------------------------------------------------------------------------------------------------------


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _printable(text: str) -> str:
    """One line without control characters, lone surrogates and direction marks, cut to `MAX_CHARACTERS`."""
    cut = text[:MAX_CHARACTERS] + ("…" if len(text) > MAX_CHARACTERS else "")
    shown = (" " if unicodedata.category(character)[0] in "CZ" else character for character in cut)
    return " ".join("".join(shown).split())


def _wrapped(
    text: str,
    size: int,
    colour: str,
    *,
    bold: bool = False,
    width: int = PANEL_PX,
    space_after: int = 0,
    max_lines: int = MAX_LINES,
) -> _Text:
    """Break a text into lines of at most ``width`` pixels, inside a word only where the word is wider than a line."""
    font = _font(size)
    lines = [""]
    for word in _printable(text).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], f"{last}…"]
    return _Text(tuple(lines), size, colour, bold, space_after)


def _caption(speaker: str, answer: str, colour: str) -> list[_Text]:
    """The name of the speaker, and what is said."""
    said = _printable(answer)
    return [
        _wrapped(speaker, 13, FAINT, space_after=1),
        _wrapped(f"“{said}”" if said else "(no answer)", 17, colour, space_after=12),
    ]


def _draw_texts(draw: ImageDraw.ImageDraw, texts: list[_Text], left: int, top: int) -> None:
    for text in texts:
        for index, line in enumerate(text.lines):
            place = (left, top + round(index * text.size * LINE_HEIGHT))
            # Pillow's own font has one weight; a thin stroke makes it a heading.
            stroke = 0.4 if text.bold else 0.0
            draw.text(place, line, fill=text.colour, font=_font(text.size), stroke_width=stroke)
        top += text.height
