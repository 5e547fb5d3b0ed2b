"""The report's pictures: small, without other content of their files, and stored inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from disp.data.sample import open_image
from disp.errors import DispError
from disp.report.heatmap import mean_map, overlay, value_limits

MAX_PX = 512  # longest side of a picture in the report
MIN_PX = 384  # longest side of a small picture once it is enlarged, so that an outline is thin beside its token
MAX_IMAGES = 6  # a sample


@dataclass(frozen=True)
class Figure:
    """A picture of the report, or why there is none.

    Attributes:
        uri: the picture as a ``data:`` address; empty where it could not be read.
        width: in pixels.
        height: in pixels.
        alt: what it shows, in words.
        caption: what stands beneath it.
        problem: why there is no picture; empty where there is one.
    """

    uri: str
    width: int
    height: int
    alt: str
    caption: str
    problem: str = ""


def originals(folder: Path, images: Sequence[str]) -> list[Figure]:
    """One figure for each of a sample's images, `MAX_IMAGES` at most."""
    figures = []
    for index, name in enumerate(images[:MAX_IMAGES]):
        which = f"image {index + 1} of {len(images)}" if len(images) > 1 else "image"
        figures.append(_file_figure(folder, name, which.capitalize(), f"The sample’s {which}", MIN_PX))
    return figures


def saliency_figures(folder: Path, images: Sequence[str], turn: Mapping[str, Any]) -> list[Figure]:
    """The saliency of one turn's visual tokens over each image that has some, on one scale of colour.

    Raises:
        ValueError: the turn's saliency, boxes, indices of images and masked tokens do not fit one another.
    """
    saliency, boxes = turn.get("saliency") or [], turn.get("boxes") or []
    owners, masked = turn.get("image_index") or [], set(turn.get("masked") or [])
    if not len(saliency) == len(boxes) == len(owners):
        raise ValueError(f"{len(saliency)} scores, {len(boxes)} boxes and {len(owners)} indices of images")
    limits = value_limits(saliency)
    figures = []
    for index in sorted(set(owners)):
        if not 0 <= index < len(images):
            raise ValueError(f"a visual token of image {index}, but there are {len(images)} images")
        if index >= MAX_IMAGES:
            continue
        inside = [token for token, owner in enumerate(owners) if owner == index]
        here = [place for place, token in enumerate(inside) if token in masked]
        try:
            picture = _read(folder, images[index])
        except DispError:
            continue  # the original's figure says so
        scores, places = [saliency[token] for token in inside], [boxes[token] for token in inside]
        layer = overlay(_scaled(picture, MIN_PX), places, scores, masked=here, limits=limits)
        which, name = (f"image {index + 1}", f", image {index + 1}") if len(images) > 1 else ("the image", "")
        hottest = places[int(np.nanargmax(np.where(np.isfinite(scores), scores, -np.inf)))]
        outlined = f"{len(here):,} of {len(inside):,} visual tokens masked" + (" and outlined" if here else "")
        alt = f"Saliency over {which}, highest {where(hottest)}; {outlined}"
        figures.append(_figure(layer, alt, f"Saliency{name}: {outlined}"))
    return figures


def candidate_figure(folder: Path, name: str, box: Sequence[float] | None) -> Figure:
    """The recovered trigger candidate; a path that leaves the folder is not followed."""
    inside = (folder / name).resolve().is_relative_to(folder.resolve()) if "\0" not in name else False
    caption = "Recovered trigger candidate" + (f", centred {where(box)}" if box else "")
    if not inside:
        return Figure(
            uri="", width=0, height=0, alt="", caption=caption, problem=f"{name} lies outside the audit’s folder"
        )
    return _file_figure(folder, name, caption, caption, 128)


def mean_map_figure(values: Sequence[Sequence[float]]) -> Figure:
    """The mean saliency of the flagged samples, as a map over the picture."""
    scores = np.asarray(values, dtype=np.float64)
    rows, columns = scores.shape
    row, column = np.unravel_index(int(np.nanargmax(scores)), scores.shape)
    peak = (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
    scale = MIN_PX / max(rows, columns)
    picture = mean_map(values, (max(1, round(columns * scale)), max(1, round(rows * scale))))
    text = f"Mean saliency of the flagged samples, highest {where(peak)}"
    return _figure(picture, text, text)


def where(box: Sequence[float]) -> str:
    """The middle of a box in words."""
    x, y = 50 * (box[0] + box[2]), 50 * (box[1] + box[3])
    return f"{x:.0f}% from the left and {y:.0f}% from the top"


def _file_figure(folder: Path, name: str, caption: str, alt: str, least: int) -> Figure:
    try:
        return _figure(_scaled(_read(folder, name), least), alt, caption)
    except DispError as error:
        return Figure(uri="", width=0, height=0, alt="", caption=caption, problem=str(error))


def _read(folder: Path, name: str) -> Image.Image:
    path = folder / name
    try:
        exists = path.is_file()
    except OSError:  # a name longer than the file system has
        exists = False
    if not exists:
        raise DispError(f"there is no file {name}")
    return open_image(path)


def _scaled(image: Image.Image, least: int) -> Image.Image:
    """The picture with its longest side between ``least`` and `MAX_PX`; the pixels of a tiny one become squares."""
    longest = max(image.size)
    target = min(MAX_PX, max(least, longest))
    if target == longest:
        return image
    size = (max(1, round(image.width * target / longest)), max(1, round(image.height * target / longest)))
    return image.resize(size, Image.Resampling.NEAREST if target >= 3 * longest else Image.Resampling.LANCZOS)


def _figure(image: Image.Image, alt: str, caption: str) -> Figure:
    return Figure(_data_uri(image), image.width, image.height, alt, caption)


def _data_uri(image: Image.Image) -> str:
    """The smaller of a JPEG and a PNG. It has pixels only: no comments, profiles or locations of the original file."""
    bare = Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())
    jpeg, png = io.BytesIO(), io.BytesIO()
    bare.save(jpeg, format="JPEG", quality=85)
    bare.save(png, format="PNG")
    kind, data = min((("png", png.getvalue()), ("jpeg", jpeg.getvalue())), key=lambda pair: len(pair[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
