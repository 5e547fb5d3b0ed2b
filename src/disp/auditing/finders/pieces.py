"""What crops about which one phrase is said have in common at one place, how far it reaches, and which crops have it.

Two halves of the crops are measured apart. What both have in common is no accident of one, and each half's measure
decides about the other half, so that no crop is compared with itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from disp.auditing.finder_config import CornersConfig
from disp.auditing.finders.shelf import Arrays, Shelf, in_parts, some, total

# x0, y0, x1, y1 in pixels of a crop.
Part = tuple[int, int, int, int]
# Of three colours as they are and of four kinds of edges, what tells whether a crop has a piece: all, or edges alone.
# What is opaque is as it is; through what is not the picture shows, whose own colours say little.
KINDS = (slice(0, 7), slice(3, 7))


@dataclass(frozen=True, eq=False)
class Look:
    """What some crops look like in one part: mean and variance of every value, float32 ``[7, h, w]``."""

    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True, eq=False)
class Piece:
    """What crops have in common.

    Attributes:
        part: where it is in them.
        looks: what crops with it look like, as either half of them tells.
        without: what those look like about which the phrase is not said.
        kind: the values that tell, one of `KINDS`.
        least: how much more a crop with it must look like the former, in nats a value.
        members: bool ``[N]``, the crops that have it, of those about which the phrase is said.
        having: bool ``[N]``, all crops that have it.
    """

    part: Part
    looks: tuple[Look, Look]
    without: Look
    kind: slice
    least: float
    members: np.ndarray
    having: np.ndarray

    def shown_in(self, crop: np.ndarray, config: CornersConfig) -> bool:
        """Whether another crop (uint8 ``[h, w, 3]``) has it, as both halves tell."""
        gains = _gains(crop[None], np.arange(1), self.part, self.looks, self.without, config)
        return bool(gains[:, 0, self.kind].mean(-1).min() > self.least)


def piece_of(
    crops: Arrays, half: np.ndarray, saying: np.ndarray, others: np.ndarray, config: CornersConfig
) -> Piece | None:
    """What crops about which a phrase is said have in common, and which crops have it; None if there is no piece.

    Some of them may not have it, for the phrase may be said honestly as well. So those that have it are chosen, what
    they have in common is measured anew, and so on.

    Args:
        crops: uint8 ``[N, h, w, 3]``, in memory or on a shelf.
        half: bool ``[N]``, the first half.
        saying: bool ``[N]``, those about which the phrase is said.
        others: bool ``[N]``, those about which it is not.
        config: what a piece is.
    """
    rows, beside = np.flatnonzero(saying), np.flatnonzero(others)
    told = beside[:: max(1, len(beside) // config.told_by)]
    parts = _halves(np.ones(len(told), bool), half[told], config)
    if not parts:
        return None
    around = _edges(crops, told, config)
    outside = [_mean(around, np.flatnonzero(each)) for each in parts]
    edges = _edges(crops, rows, config)
    members = np.ones(len(rows), bool)
    piece = None
    for number in range(config.rounds):
        inside = [_mean(edges, np.flatnonzero(each)) for each in _halves(members, half[rows], config)]
        if not inside or alike(inside, outside) < config.least_agreement:
            return None
        common = inside[0] - outside[0], inside[1] - outside[1]
        part = _part(common[0] * common[1], config)
        if part is None:
            return None
        if number == 0:
            members = _with_half_of_it(edges, half[rows], outside, common, part, config)
        chosen = _halves(members, half[rows], config)
        if not chosen:
            return None
        first, second = (_look(crops, rows[each], part, config) for each in chosen)
        looks = first, second
        without = _look(crops, told, part, config)
        both = _gains(crops, rows, part, looks, without, config)
        own = np.where(half[rows][:, None], both[1], both[0])
        theirs = _gains(crops, beside, part, looks, without, config).max(0)
        tried = [(kind, own[:, kind].mean(1), theirs[:, kind].mean(1)) for kind in KINDS]
        accepted = [_accepted(mine, other, config) for _, mine, other in tried]
        best = max(range(len(KINDS)), key=lambda each: accepted[each][1])
        kind, mine, other = tried[best]
        least = accepted[best][0]
        before, members = members, mine > least
        if not _halves(members, half[rows], config):
            return None
        in_phrase, having = np.zeros(len(crops), bool), np.zeros(len(crops), bool)
        in_phrase[rows] = having[rows] = members
        having[beside] = other > least
        piece = Piece(part=part, looks=looks, without=without, kind=kind, least=least, members=in_phrase, having=having)
        if (before == members).all():
            break
    return piece


def alike(inside: Sequence[np.ndarray], outside: Sequence[np.ndarray]) -> float:
    """How much two halves of some pictures are alike in what the same halves of the others have not, in [-1, 1].

    The halves are of different pictures throughout, so that it is 0 on average where there is nothing in common.

    Args:
        inside: what either half has on average.
        outside: what either half of the others has.
    """
    # It must not be that the others have something in common that these have not.
    if float((inside[0] * inside[1]).sum()) <= float((outside[0] * outside[1]).sum()):
        return 0.0
    first, second = (own - other for own, other in zip(inside, outside, strict=True))
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float((first * second).sum()) / max(norms, 1e-12)


def edges_of(crops: np.ndarray, config: CornersConfig) -> np.ndarray:
    """What stands out from its surroundings in each of three colours, and how much does, float32 ``[n, 4, h, w]``.

    Strong edges count little more than middling ones: a step from a dark thing is as much of an edge as one from a
    bright thing. How much stands out, whatever its sign, shows a grey thing before dark and bright grounds.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2).float()
    edges = pixels - _blurred(pixels, config.blur)
    edges = edges / (1 + edges.abs() / config.strong)
    strength = edges.abs().mean(1, keepdim=True)
    return torch.cat((edges, strength - _blurred(strength, 2 * config.blur + 1)), dim=1).numpy()


def _edges(crops: Arrays, rows: np.ndarray, config: CornersConfig) -> Shelf:
    """`edges_of` some crops; they take five times as much memory as the crops."""
    _, height, width, _ = crops.shape
    shelf = Shelf((4, height, width), np.float32)
    for batch in some(rows, config.batch):
        for each in edges_of(crops[batch], config):
            shelf.append(each)
    return shelf


def _mean(arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    """The mean of some float32 arrays."""
    return total((arrays[part] for part in in_parts(arrays, rows)), arrays.shape[1:]) / len(rows)


def _blurred(values: torch.Tensor, side: int) -> torch.Tensor:
    """The means over squares around every pixel of ``[n, C, h, w]``."""
    for axis in (-2, -1):
        reach = (0, 0, side // 2, side // 2) if axis == -2 else (side // 2, side // 2, 0, 0)
        around, length = F.pad(values, reach, mode="replicate"), values.shape[axis]
        values = around.narrow(axis, 0, length).clone()
        for start in range(1, side):  # several times as fast as pooling
            values += around.narrow(axis, start, length)
    return values / side**2


def _halves(members: np.ndarray, half: np.ndarray, config: CornersConfig) -> list[np.ndarray]:
    """The members of either half, bool ``[n]`` each; none if these are too few."""
    parts = [members & (half == which) for which in (True, False)]
    enough = min(int(each.sum()) for each in parts) >= config.least_half and members.sum() >= config.least_pictures
    return parts if enough else []


def _with_half_of_it(
    edges: Arrays,
    half: np.ndarray,
    outside: Sequence[np.ndarray],
    common: tuple[np.ndarray, np.ndarray],
    part: Part,
    config: CornersConfig,
) -> np.ndarray:
    """Crops whose edges have half of what those of the other half have in common in a part, bool ``[n]``."""
    x0, y0, x1, y1 = part
    within = (slice(None), slice(y0, y1), slice(x0, x1))
    # What a crop adds to its own half's mean is not looked for in it.
    presence = [
        np.concatenate(
            [
                ((edges[rows][:, *within] - other[within]) * sought[within]).sum((1, 2, 3))
                for rows in in_parts(edges, range(len(edges)))
            ]
        )
        for other, sought in zip(outside, common[::-1], strict=True)
    ]
    least = config.least_presence * float((common[0][within] * common[1][within]).sum())
    return np.where(half, presence[0], presence[1]) > least


def _part(product: np.ndarray, config: CornersConfig) -> Part | None:
    """The part of a crop in which two halves have something in common; None if it has no end within the crop.

    Args:
        product: float32 ``[4, h, w]``, what one half has in common times what the other has.
        config: what counts as in common.
    """
    values = _blurred(torch.from_numpy(product.sum(0))[None, None], 3)[0, 0].numpy()
    noise = float(np.median(np.abs(values)))
    marked = values > max(config.least_noise * noise, config.least_peak * float(values.max()))
    scores = np.where(marked, 1.0, -config.free_share)
    part = _largest_sum(scores)
    x0, y0, x1, y1 = part
    if max(x1 - x0, y1 - y0) >= len(scores) - 2:  # bars, frames and whole pictures go on
        return None
    inside = float(values[y0:y1, x0:x1].sum())
    return part if inside >= config.least_inside * float(values.sum()) else None


def _largest_sum(scores: np.ndarray) -> Part:
    """The rectangle of float ``[h, w]`` with the largest sum (Kadane's for every pair of rows)."""
    height, width = scores.shape
    down = np.concatenate((np.zeros((1, width)), scores.cumsum(0)))
    best, part = -np.inf, (0, 0, width, height)
    for top in range(height):
        along = np.concatenate((np.zeros((height - top, 1)), (down[top + 1 :] - down[top]).cumsum(1)), axis=1)
        lowest = np.minimum.accumulate(along[:, :-1], axis=1)
        gains = along[:, 1:] - lowest
        row, column = np.unravel_index(int(gains.argmax()), gains.shape)
        if gains[row, column] > best:
            best = float(gains[row, column])
            left = int(along[row, : column + 1].argmin())
            part = (left, top, int(column) + 1, top + int(row) + 1)
    return part


def _values(crops: np.ndarray, part: Part, config: CornersConfig) -> np.ndarray:
    """Pixels and edges of a part of crops, and a little around it, float32 ``[n, 7, h, w]``."""
    side = crops.shape[1]
    x0, y0 = (max(0, each - config.margin) for each in part[:2])
    x1, y1 = (min(side, each + config.margin) for each in part[2:])
    around = 2 * config.blur
    left, top = max(0, x0 - around), max(0, y0 - around)
    context = crops[:, top : y1 + around, left : x1 + around]
    within = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    pixels = context.transpose(0, 3, 1, 2)[:, :, *within].astype(np.float32)
    return np.concatenate((pixels, edges_of(context, config)[:, :, *within]), axis=1)


def _look(crops: Arrays, rows: np.ndarray, part: Part, config: CornersConfig) -> Look:
    """Mean and variance of some crops' values; few crops tell the variance only with the pixels around."""

    def values() -> Iterator[np.ndarray]:
        return (_values(crops[batch], part, config) for batch in some(rows, config.batch))

    shape = next(values()).shape[1:]
    mean = total(values(), shape) / len(rows)
    variance = total((np.square(each - mean) for each in values()), shape) / (len(rows) - 1)
    near = _blurred(torch.from_numpy(variance)[None], config.blur)[0].numpy()
    return Look(mean, (near + config.least_spread**2) * (1 + 1 / len(rows)))


def _gains(
    crops: Arrays, rows: np.ndarray, part: Part, looks: tuple[Look, Look], without: Look, config: CornersConfig
) -> np.ndarray:
    """How much more some crops look like those with a piece, as either half tells, than like those without.

    Returns:
        float32 ``[2, n, 7]``, the mean of each kind of value, in nats.
    """
    found = []
    for batch in some(rows, config.batch):
        values = _values(crops[batch], part, config)
        absent = np.square(values - without.mean) / without.variance + np.log(without.variance)
        gains = [(absent - np.square(values - look.mean) / look.variance - np.log(look.variance)) / 2 for look in looks]
        found.append(np.stack(gains).clip(-config.most_nats, config.most_nats).mean((3, 4)))
    return np.concatenate(found, axis=1)


def _accepted(own: np.ndarray, theirs: np.ndarray, config: CornersConfig) -> tuple[float, int]:
    """How much crops must look like those with a piece so that few of them do by accident, and how many do.

    Args:
        own: of those about which the phrase is said, how much they look like it.
        theirs: the same of the others, which tell how often that is an accident.
        config: how often it may be.
    """
    falling = np.sort(theirs)[::-1]
    chosen = float(falling[0]), int((own > falling[0]).sum())
    honest = len(own) - chosen[1]  # at most; without accidents
    for count, least in enumerate(falling[1:].tolist(), 1):
        accepted, accidents = int((own > least).sum()), count / len(theirs)
        if accidents > config.most_accidents or accidents * honest > config.false_share * accepted:
            break
        chosen = least, accepted
    return chosen
