"""Small windows of pictures that are the same to the pixel in all copies of a thing, and how far a copy reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from disp.auditing.finder_config import WindowsConfig
from disp.data.sample import ImageSource, open_image
from disp.draws import generator
from disp.suspicion.places import Box


@dataclass(frozen=True)
class View:
    """How pictures are looked at.

    Attributes:
        window: samples along a window's side.
        step: pixels from one to the next.
        exact: whether pixels are as they were given, in grey; otherwise the picture is scaled to so many steps, and
            what is smooth is taken off.
        config: how windows are chosen and compared.
    """

    window: int
    step: int
    exact: bool
    config: WindowsConfig

    @property
    def least(self) -> float:
        """Correlation of two copies."""
        return self.config.least_exact if self.exact else self.config.least_copy

    @property
    def span(self) -> int:
        """Pixels along a window's side."""
        return (self.window - 1) * self.step + 1


def views_of(side: float, config: WindowsConfig) -> tuple[View, View]:
    """How pictures with a shorter edge of so many pixels are looked at: scaled, and as they are.

    A step is one pixel of a small picture and two of a larger one, where a copy may lie between two steps.
    """
    exact_step = max(1, round(min(side, config.exact_pixels) / config.exact_steps))
    return (
        View(window=config.side, step=2 if side >= 2 * config.steps else 1, exact=False, config=config),
        View(window=config.exact_side, step=exact_step, exact=True, config=config),
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
        float32 ``[1 + rules, count, D]``, without their mean colour and of norm 1; zeros for a window with little in
        it.
    """
    grey, step, channels, config = edges.mean(0), view.step, len(edges), view.config
    across = F.pad(grey[:, 2:] - grey[:, :-2], (1, 1, 0, 0))
    down = F.pad(grey[2:] - grey[:-2], (0, 0, 1, 1))
    products = torch.stack((across * across, across * down, down * down))
    norms = _norms(edges, view)
    # The smaller eigenvalue of the structure tensor: along a straight edge a window could be anywhere.
    xx, xy, yy = _means(products, view.span) if view.exact else _means(products, view.window, step)
    corner = (xx + yy) / 2 - ((xx - yy).square() / 4 + xy.square()).sqrt()
    telling = corner >= config.least_corner * (xx + yy) / 2
    score = corner
    if view.exact:
        mixed = grey[1:, 1:] - grey[:-1, 1:] - grey[1:, :-1] + grey[:-1, :-1]
        rough = _means(mixed.square()[None], view.span - 1)[0]
        # The mean square of what neighbouring pixels differ by both across and down, by the variance, times the square
        # of the step.
        telling &= rough * channels * view.window**2 >= config.least_rough / step**2 * norms.square()
        score = rough.masked_fill(~telling, -torch.inf)
    likeness = F.conv2d(edges[None], _fixed_noise(config.rules, channels, view.window), dilation=step)[0] / norms
    scores = torch.cat((score[None], likeness.masked_fill(~telling, -torch.inf)))  # [1 + rules, H', W']
    peaks = scores.masked_fill(scores < _largest_nearby(scores, config.nearby * step), -torch.inf)
    values, places = peaks.flatten(1).topk(config.count)
    # [C, H', W', window, window]
    everywhere = edges.unfold(1, view.span, 1).unfold(2, view.span, 1)[..., ::step, ::step]
    width = scores.shape[2]
    places = places.flatten()
    windows = everywhere[:, places // width, places % width].transpose(0, 1)  # [k, C, window, window]
    plain = (windows - windows.mean((2, 3), keepdim=True)).flatten(1)
    norms = plain.norm(dim=-1, keepdim=True)
    enough = (norms > config.least_contrast * plain.shape[1] ** 0.5) & (values.flatten() > -torch.inf)[:, None]
    plain = torch.where(enough, plain / norms, 0.0)
    if view.exact:
        plain[plain.pow(4).sum(-1) > 1 / config.least_spread] = 0
    return plain.view(len(scores), config.count, -1)


@cache
def _fixed_noise(rules: int, channels: int, window: int) -> Tensor:
    """What windows are compared with to choose some of them, float32 ``[rules, channels, window, window]``."""
    noise = generator(0, "windows").standard_normal((rules, channels, window, window))
    return torch.from_numpy(noise - noise.mean((2, 3), keepdims=True)).float()


def _norms(edges: Tensor, view: View) -> Tensor:
    """The norm of every window without its mean colour, ``[H', W']``, at least that of one with little in it."""
    means = _means(torch.cat((edges, edges.square())), view.window, view.step)
    channels = len(edges)
    variances = (means[channels:] - means[:channels].square()).clamp(min=0).mean(0)
    size = channels * view.window**2
    return (variances * size).sqrt().clamp(min=view.config.least_contrast * size**0.5)


def _best_match(window: Tensor, edges: Tensor, view: View) -> tuple[float, int, int]:
    """The highest correlation of a window (``[D]``) anywhere in a picture, and the row and column where it is.

    Between two samples a board's field may end at either pixel, and a field on it is like others: where pixels are as
    given it is the first place that is about as good, in each picture alike.
    """
    kernel = window.view(1, len(edges), view.window, view.window)
    values = F.conv2d(edges[None], kernel, dilation=view.step)[0, 0] / _norms(edges, view)
    best = float(values.amax())
    good = values >= best - (view.config.as_good if view.exact else 0.0)
    row, column = divmod(int(good.flatten().byte().argmax()), values.shape[1])
    return best, row, column


def _largest_nearby(values: Tensor, reach: int) -> Tensor:
    """The largest of each channel (``[C, H, W]``) within so many pixels of every place."""
    # First along columns and then along rows, which is several times as fast.
    size = 2 * reach + 1
    return F.max_pool2d(F.max_pool2d(values, (size, 1), 1, (reach, 0)), (1, size), 1, (0, reach))


def boxes_of(window: Tensor, images: Sequence[ImageSource], view: View) -> list[Box | None]:
    """Where the copy that a window (float32 ``[D]``) is part of lies in each picture; None where it is not."""
    config = view.config
    found: list[tuple[int, int, int, int] | None] = []
    crops: list[Tensor] = []
    areas: list[int] = []
    for image in images:
        pixels = pixels_of(image, view)
        value, row, column = _best_match(window, edges_of(pixels, view), view)
        found.append((row, column, *pixels.shape[1:]) if value >= config.least_known else None)
        if value >= view.least and len(crops) < config.measured:
            areas.append(min(pixels.shape[1:]) ** 2)
            crops.append(_crop(pixels, row, column, view))
    if len(crops) < config.least_pictures:
        return [None] * len(images)
    extent = _extent(torch.stack(crops), view, config.largest * float(np.median(areas)))
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


def shows_shape(window: Tensor, images: Sequence[ImageSource], view: View) -> list[bool]:
    """Whether each picture has a window's shape somewhere, whatever its colours.

    Args:
        window: float32 ``[D]``, of a view of three colours.
        images: pictures that are looked through.
        view: how they are looked at.
    """
    shape = window.unflatten(0, (3, -1)).mean(0)
    shape = shape / shape.norm().clamp(min=1e-6)
    edges = (edges_of(pixels_of(image, view), view).mean(0, keepdim=True) for image in images)
    return [_best_match(shape, each, view)[0] >= view.least for each in edges]


def _crop(pixels: Tensor, row: int, column: int, view: View) -> Tensor:
    """What lies around a window, ``[3, S, S]`` with NaN where the picture ends."""
    reach = view.config.reach * view.step
    padded = F.pad(pixels, (reach,) * 4, value=torch.nan)
    size = view.span + 2 * reach
    return padded[:, row : row + size, column : column + size]


def _extent(crops: Tensor, view: View, largest: float) -> tuple[int, int, int, int] | None:
    """How far a copy reaches around its window: x0, y0, x1, y1 from the window's corner; None if it is none.

    Args:
        crops: float32 ``[n, 3, S, S]`` of `_crop`.
        view: how the pictures are looked at.
        largest: pixels of more than which it is no copy.
    """
    there = ~crops.isnan()
    counts = there.sum(0)
    means = crops.nansum(0) / counts.clamp(min=1)
    variances = torch.where(there, crops - means, 0.0).square().sum(0) / counts.clamp(min=1)
    usual = torch.where(there, crops - crops.nanmean(), 0.0).square().sum() / there.sum()
    config = view.config
    steady = ((variances.mean(0) <= config.steady**2 * usual) & (counts[0] >= config.least_pictures)).float()
    size, reach = len(steady), config.reach * view.step
    x0, y0, x1, y1 = reach, reach, reach + view.span, reach + view.span
    grown = True
    while grown:
        grown = False
        if x0 > 0 and steady[y0:y1, x0 - 1].mean() >= config.steady_share:
            x0, grown = x0 - 1, True
        if x1 < size and steady[y0:y1, x1].mean() >= config.steady_share:
            x1, grown = x1 + 1, True
        if y0 > 0 and steady[y0 - 1, x0:x1].mean() >= config.steady_share:
            y0, grown = y0 - 1, True
        if y1 < size and steady[y1, x0:x1].mean() >= config.steady_share:
            y1, grown = y1 + 1, True
    if (x1 - x0) * (y1 - y0) > largest:
        return None
    return x0 - reach, y0 - reach, x1 - reach, y1 - reach


def edges_of(pixels: Tensor, view: View) -> Tensor:
    """A picture ``[3, H, W]`` without what is smooth in it and what is finer than a step, or as given in grey."""
    if view.exact:
        return pixels.mean(0, keepdim=True) - 128  # compression keeps less of colours
    step, blur = view.step, view.config.blur * view.step
    around = F.pad(pixels[None], (blur // 2,) * 4, mode="replicate")[0]
    smooth = _means(around, blur)[:, : pixels.shape[1], : pixels.shape[2]]
    fine = _means(F.pad(pixels[None], (0, step - 1, 0, step - 1), mode="replicate")[0], step)
    return fine - smooth


def _means(values: Tensor, side: int, step: int = 1) -> Tensor:
    """The means over all squares of so many steps, ``[C, H, W]`` to ``[C, H', W']``."""
    kernel = torch.full((1, 1, side, 1), 1 / side)
    down = F.conv2d(values[:, None], kernel, dilation=step)
    return F.conv2d(down, kernel.mT, dilation=step)[:, 0]


def pixels_of(image: ImageSource, view: View) -> Tensor:
    """float32 ``[3, H, W]`` of 0 to 255, as given or the shorter edge of so many steps."""
    opened, config = open_image(image), view.config
    shorter = min(opened.size)
    # A picture that is smaller than the others must hold as many windows as are chosen.
    side = min(max(shorter, view.span + config.count), config.exact_pixels) if view.exact else config.steps * view.step
    width, height = (min(config.longest * side, max(side, round(length * side / shorter))) for length in opened.size)
    scaled = opened.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(scaled, np.float32)).permute(2, 0, 1)
