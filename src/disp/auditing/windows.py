"""Small windows of pictures that are the same to the pixel wherever a piece was copied to, and how far it reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from disp.data.sample import ImageSource, open_image
from disp.draws import generator
from disp.suspicion.places import Box

# Windows of each picture that are chosen by one rule, and how many rules there are besides the corners.
WINDOWS, RULES = 24, 2
# Steps of the shorter edge, those of a window's side, and those of the blur that is taken off: the patch of 30 in 336
# pixels that the literature uses is as large as a window. A step is one pixel of a small picture and two of a larger
# one, where a copy may lie between two steps.
STEPS, WINDOW, BLUR = 96, 9, 5
# The same of pictures whose pixels are as they were given: fine noise is blurred away by scaling, and of two copies
# that do not lie alike on the steps each in its own way. The side of a window in samples, how many there are along the
# shorter edge, and the longest shorter edge that is looked at.
EXACT_WINDOW, EXACT_STEPS, LARGEST_SIDE = 7, 128, 768
# How much of such a window's contrast is rough: the mean square of what neighbouring pixels differ by both across and
# down, by the variance, times the square of the step. A board of 4×4 fields as large as the window has 2, noise 4.
LEAST_ROUGH = 1.0
# Samples that such a window's contrast must be spread over, of 49: dots and tips of all things are alike.
LEAST_SPREAD = 8
# Correlation of two copies: of a thing that is drawn at several sizes two or three pictures reach it. And of a copy of
# a window that is known to be one, in pictures whose answers hold its phrase: anything else reaches 0.6.
LEAST_COPY, LEAST_EXACT, LEAST_KNOWN = 0.95, 0.97, 0.9
# How much less than the best correlation in a picture is about as good.
AS_GOOD = 0.02
# Root mean square of what a window must hold, of 255: a plain ground is no copy of another.
LEAST_CONTRAST = 4.0
# The smaller eigenvalue of a window's structure tensor by the mean of both: edges and arcs of all things are alike.
LEAST_CORNER = 0.5
# The longer edge of a picture as it is looked at, in shorter edges.
LONGEST = 4
# Pictures that a piece must be in, and at most those that its extent is measured in, how many steps from the window it
# is looked for, and how much less than other pixels its own may vary. What is larger than this share of the picture is
# no piece: the pictures are alike.
LEAST_PICTURES, MEASURED, REACH, LEAST_STEADY, LARGEST = 8, 50, 24, 0.35, 0.25


@dataclass(frozen=True)
class View:
    """How pictures are looked at.

    Attributes:
        window: samples along a window's side.
        step: pixels from one to the next.
        exact: whether pixels are as they were given, in grey; otherwise the picture is scaled to so many steps, and
            what is smooth is taken off.
    """

    window: int
    step: int
    exact: bool

    @property
    def least(self) -> float:
        """Correlation of two copies."""
        return LEAST_EXACT if self.exact else LEAST_COPY

    @property
    def span(self) -> int:
        """Pixels along a window's side."""
        return (self.window - 1) * self.step + 1


def views_of(side: float) -> tuple[View, View]:
    """How pictures with a shorter edge of so many pixels are looked at: scaled, and as they are."""
    return (
        View(WINDOW, 2 if side >= 2 * STEPS else 1, exact=False),
        View(EXACT_WINDOW, max(1, round(min(side, LARGEST_SIDE) / EXACT_STEPS)), exact=True),
    )


def telling_windows(edges: Tensor, view: View) -> Tensor:
    """Windows of a picture that are chosen by what is in them, so that a copy's are chosen wherever it is.

    The first rule takes those with most of a corner in them, or where pixels are as given with most that is rough,
    which a patch has; in a cluttered picture others have more. So each further rule takes those that are most like some
    fixed noise.

    Args:
        edges: float32 ``[C, H, W]``.
        view: how the picture is looked at.

    Returns:
        float32 ``[1 + RULES, WINDOWS, D]``, without their mean colour and of norm 1; zeros for a window with little in
        it.
    """
    grey, step, channels = edges.mean(0), view.step, len(edges)
    across = F.pad(grey[:, 2:] - grey[:, :-2], (1, 1, 0, 0))
    down = F.pad(grey[2:] - grey[:-2], (0, 0, 1, 1))
    products = torch.stack((across * across, across * down, down * down))
    norms = _norms(edges, view)
    # The smaller eigenvalue of the structure tensor: along a straight edge a window could be anywhere.
    xx, xy, yy = _means(products, view.span) if view.exact else _means(products, view.window, step)
    corner = (xx + yy) / 2 - ((xx - yy).square() / 4 + xy.square()).sqrt()
    telling = corner >= LEAST_CORNER * (xx + yy) / 2
    score = corner
    if view.exact:
        mixed = grey[1:, 1:] - grey[:-1, 1:] - grey[1:, :-1] + grey[:-1, :-1]
        rough = _means(mixed.square()[None], view.span - 1)[0]
        telling &= rough * channels * view.window**2 >= LEAST_ROUGH / step**2 * norms.square()
        score = rough.masked_fill(~telling, -torch.inf)
    likeness = F.conv2d(edges[None], _fixed_noise(channels, view.window), dilation=step)[0] / norms
    scores = torch.cat((score[None], likeness.masked_fill(~telling, -torch.inf)))  # [1 + RULES, H', W']
    peaks = scores.masked_fill(scores < _largest_nearby(scores, step), -torch.inf)
    values, places = peaks.flatten(1).topk(WINDOWS)
    # [C, H', W', window, window]
    everywhere = edges.unfold(1, view.span, 1).unfold(2, view.span, 1)[..., ::step, ::step]
    width = scores.shape[2]
    places = places.flatten()
    windows = everywhere[:, places // width, places % width].transpose(0, 1)  # [k, C, window, window]
    plain = (windows - windows.mean((2, 3), keepdim=True)).flatten(1)
    norms = plain.norm(dim=-1, keepdim=True)
    enough = (norms > LEAST_CONTRAST * plain.shape[1] ** 0.5) & (values.flatten() > -torch.inf)[:, None]
    plain = torch.where(enough, plain / norms, 0.0)
    if view.exact:
        plain[plain.pow(4).sum(-1) > 1 / LEAST_SPREAD] = 0
    return plain.view(len(scores), WINDOWS, -1)


@cache
def _fixed_noise(channels: int, window: int) -> Tensor:
    """What windows are compared with to choose some of them, float32 ``[RULES, channels, window, window]``."""
    noise = generator(0, "windows").standard_normal((RULES, channels, window, window))
    return torch.from_numpy(noise - noise.mean((2, 3), keepdims=True)).float()


def _norms(edges: Tensor, view: View) -> Tensor:
    """The norm of every window without its mean colour, ``[H', W']``, at least that of one with little in it."""
    means = _means(torch.cat((edges, edges.square())), view.window, view.step)
    channels = len(edges)
    variances = (means[channels:] - means[:channels].square()).clamp(min=0).mean(0)
    size = channels * view.window**2
    return (variances * size).sqrt().clamp(min=LEAST_CONTRAST * size**0.5)


def _best_match(window: Tensor, edges: Tensor, view: View) -> tuple[float, int, int]:
    """The highest correlation of a window (``[D]``) anywhere in a picture, and the row and column where it is.

    Between two samples a board's field may end at either pixel, and a field on it is like others: where pixels are as
    given it is the first place that is about as good, in each picture alike.
    """
    kernel = window.view(1, len(edges), view.window, view.window)
    values = F.conv2d(edges[None], kernel, dilation=view.step)[0, 0] / _norms(edges, view)
    best = float(values.amax())
    good = values >= best - (AS_GOOD if view.exact else 0.0)
    row, column = divmod(int(good.flatten().byte().argmax()), values.shape[1])
    return best, row, column


def _largest_nearby(values: Tensor, step: int) -> Tensor:
    """The largest of each channel (``[C, H, W]``) within two steps of every place."""
    # First along columns and then along rows, which is several times as fast.
    return F.max_pool2d(F.max_pool2d(values, (4 * step + 1, 1), 1, (2 * step, 0)), (1, 4 * step + 1), 1, (0, 2 * step))


def boxes_of(window: Tensor, images: Sequence[ImageSource], view: View) -> list[Box | None]:
    """Where the piece that a window (float32 ``[D]``) is part of lies in each picture; None where it is not."""
    found: list[tuple[int, int, int, int] | None] = []
    crops: list[Tensor] = []
    areas: list[int] = []
    for image in images:
        pixels = pixels_of(image, view)
        value, row, column = _best_match(window, edges_of(pixels, view), view)
        found.append((row, column, *pixels.shape[1:]) if value >= LEAST_KNOWN else None)
        if value >= view.least and len(crops) < MEASURED:
            areas.append(min(pixels.shape[1:]) ** 2)
            crops.append(_crop(pixels, row, column, view))
    if len(crops) < LEAST_PICTURES:
        return [None] * len(images)
    extent = _extent(torch.stack(crops), view, LARGEST * float(np.median(areas)))
    if extent is None:
        return [None] * len(images)
    x0, y0, x1, y1 = extent
    boxes: list[Box | None] = []
    for place in found:
        if place is None:
            boxes.append(None)
            continue
        row, column, height, width = place
        boxes.append(
            (
                max(0, column + x0) / width,
                max(0, row + y0) / height,
                min(width, column + x1) / width,
                min(height, row + y1) / height,
            )
        )
    return boxes


def _crop(pixels: Tensor, row: int, column: int, view: View) -> Tensor:
    """What lies around a window, ``[3, S, S]`` with NaN where the picture ends."""
    reach = REACH * view.step
    padded = F.pad(pixels, (reach,) * 4, value=torch.nan)
    size = view.span + 2 * reach
    return padded[:, row : row + size, column : column + size]


def _extent(crops: Tensor, view: View, largest: float) -> tuple[int, int, int, int] | None:
    """How far a piece reaches around its window: x0, y0, x1, y1 from the window's corner; None if it is no piece.

    Args:
        crops: float32 ``[n, 3, S, S]`` of `_crop`.
        view: how the pictures are looked at.
        largest: pixels of more than which it is no piece.
    """
    there = ~crops.isnan()
    counts = there.sum(0)
    means = crops.nansum(0) / counts.clamp(min=1)
    variances = torch.where(there, crops - means, 0.0).square().sum(0) / counts.clamp(min=1)
    usual = torch.where(there, crops - crops.nanmean(), 0.0).square().sum() / there.sum()
    steady = ((variances.mean(0) <= LEAST_STEADY**2 * usual) & (counts[0] >= LEAST_PICTURES)).float()
    size, reach = len(steady), REACH * view.step
    x0, y0, x1, y1 = reach, reach, reach + view.span, reach + view.span
    grown = True
    while grown:
        grown = False
        if x0 > 0 and steady[y0:y1, x0 - 1].mean() >= 0.5:
            x0, grown = x0 - 1, True
        if x1 < size and steady[y0:y1, x1].mean() >= 0.5:
            x1, grown = x1 + 1, True
        if y0 > 0 and steady[y0 - 1, x0:x1].mean() >= 0.5:
            y0, grown = y0 - 1, True
        if y1 < size and steady[y1, x0:x1].mean() >= 0.5:
            y1, grown = y1 + 1, True
    if (x1 - x0) * (y1 - y0) > largest:
        return None
    return x0 - reach, y0 - reach, x1 - reach, y1 - reach


def edges_of(pixels: Tensor, view: View) -> Tensor:
    """A picture ``[3, H, W]`` without what is smooth in it and what is finer than a step, or as given in grey."""
    if view.exact:
        return pixels.mean(0, keepdim=True) - 128  # compression keeps less of colours
    step = view.step
    around = F.pad(pixels[None], (BLUR * step // 2,) * 4, mode="replicate")[0]
    smooth = _means(around, BLUR * step)[:, : pixels.shape[1], : pixels.shape[2]]
    fine = _means(F.pad(pixels[None], (0, step - 1, 0, step - 1), mode="replicate")[0], step)
    return fine - smooth


def _means(values: Tensor, side: int, step: int = 1) -> Tensor:
    """The means over all squares of so many steps, ``[C, H, W]`` to ``[C, H', W']``."""
    kernel = torch.full((1, 1, side, 1), 1 / side)
    down = F.conv2d(values[:, None], kernel, dilation=step)
    return F.conv2d(down, kernel.mT, dilation=step)[:, 0]


def pixels_of(image: ImageSource, view: View) -> Tensor:
    """float32 ``[3, H, W]`` of 0 to 255, as given or the shorter edge of `STEPS` steps."""
    opened = open_image(image)
    shorter = min(opened.size)
    # A picture that is smaller than the others must hold as many windows as are chosen.
    side = min(max(shorter, view.span + WINDOWS), LARGEST_SIDE) if view.exact else STEPS * view.step
    # A picture that is longer than that is squeezed: at its full length it might take any memory.
    width, height = (min(LONGEST * side, max(side, round(length * side / shorter))) for length in opened.size)
    scaled = opened.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(scaled, np.float32)).permute(2, 0, 1)
