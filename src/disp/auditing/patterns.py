"""Patterns that the pictures of answers with one phrase share: a picture blended in, stripes, a mark in its corner.

A trigger of the whole picture is carried by every visual token, so that masking does not take it away. It shows in the
pixels: what pictures of one thing have in common is smooth, for the thing is at another place in each of them, while a
trigger's edges are at the same place in all. No model is asked here. Whether the pattern makes the model say the phrase
is for the test in `disp.auditing.clusters`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from disp.auditing.phrases import Phrase, frequent_phrases, holds, with_neighbours
from disp.data.sample import ImageSource, Sample, image_size, open_image
from disp.draws import generator
from disp.purification.pattern import Pattern

# Pictures that are compared, the side that they are scaled to for that, and the cells of it within which they are
# smooth.
PICTURES, SIDE, CELLS = 4000, 96, 8
# Dimensions in which all phrases are compared, and how many of the most likely ones are in full.
SKETCH, LIKELY_PHRASES = 512, 50
# A phrase is looked at if answers about so many pictures hold it, at most half of all.
LEAST_HOLDERS = 8
# Correlation between what two halves of a phrase's pictures have in common. Honest phrases reach 0.12.
LEAST_AGREEMENT = 0.3
# A picture has the pattern if it has this share of what the phrase's pictures have on average.
LEAST_PRESENCE = 0.5
# Phrases that are given on, pictures that a pattern is measured on, and the side that it is measured at, at most.
PHRASES, MEASURED, MEASURED_SIDE = 5, 500, 192


def shared_patterns(
    samples: Sequence[Sample],
    responses: Sequence[str],
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> list[tuple[Phrase, Pattern]]:
    """Phrases whose pictures have edges in common, and the pattern that these are of, most alike first.

    Only the first picture of a sample is looked at. Of many samples `PICTURES` are compared, drawn at random; the
    others are looked at if they hold a phrase that is found.

    Args:
        samples: samples with a picture.
        responses: the answers of each.
        seed: of the halves and of what is drawn.
        progress: called with the number of pictures compared.

    Returns:
        ``Phrase.flagged`` are the indices of the samples that hold the phrase and whose picture has the pattern.
    """
    draw = generator(seed, "shared patterns")
    drawn = np.sort(draw.permutation(len(samples))[:PICTURES]).tolist()
    edges, row_of = _distinct([samples[index].images[0] for index in drawn], drawn, progress)
    half = draw.permutation(len(edges)) % 2 == 0
    signs = draw.choice(np.array([-1, 1], np.float32), (edges.shape[1], SKETCH)) / np.float32(SKETCH**0.5)
    sketch = edges @ signs  # as good for telling which phrases are worth a look, and 54 times as fast
    phrases = list(frequent_phrases(responses, drawn, least=LEAST_HOLDERS, most=len(drawn) // 2))
    left = set(drawn)
    found: list[tuple[Phrase, Pattern]] = []
    while len(found) < PHRASES:
        # Pictures in which a pattern was found are out of question. The words of one sentence have the same holders.
        groups: dict[tuple[int, ...], Phrase] = {}
        for phrase in phrases:
            holders = [index for index in phrase.flagged if index in left]
            rows = tuple(sorted({row_of[index] for index in holders}))
            if LEAST_HOLDERS <= len(rows):
                groups.setdefault(rows, replace(phrase, flagged=tuple(holders)))
        alike = _most_alike(edges, sketch, half, groups, np.array(sorted({row_of[index] for index in left})))
        if alike is None:
            break
        rows, parts = alike
        phrase = with_neighbours(groups[rows], responses)
        left -= set(groups[rows].flagged)
        holders = [index for index, response in enumerate(responses) if holds(response, phrase.words)]
        members = []
        for index in holders:
            at = row_of.get(index)
            # What a picture adds to its own half's mean is not looked for in it.
            sought = (parts[0] + parts[1]) / 2 if at is None else parts[int(half[at])]
            own = _edges(samples[index].images[0]) if at is None else edges[at]
            if own @ sought > LEAST_PRESENCE * float(parts[0] @ parts[1]):
                members.append(index)
        others = draw.permutation(sorted(left - set(holders)))[:MEASURED].tolist()
        if len({row_of[index] for index in members if index in row_of}) < LEAST_HOLDERS or not others:
            continue
        pattern = _pattern(*([samples[index].images[0] for index in part] for part in (members[:MEASURED], others)))
        found.append((replace(phrase, flagged=tuple(members), elsewhere=len(holders) - len(members)), pattern))
    return found


def random_patterns(like: Pattern, images: Sequence[ImageSource], count: int, seed: int) -> list[Pattern]:
    """Patterns as strong as another that pictures do not share: each the difference between two halves of some.

    Args:
        like: the other one.
        images: at least two pictures.
        count: how many patterns.
        seed: of the halves.
    """
    pictures = [_scaled(image, len(like.offset)) for image in images]
    patterns = []
    for number in range(count):
        order = generator(seed, "random pattern", number).permutation(len(pictures))
        middle = len(order) // 2
        first, second = (np.mean([pictures[index] for index in part], axis=0) for part in np.split(order, [middle]))
        strength = np.sqrt(np.square(like.offset + (like.gain - 1) * (first + second) / 2).mean())
        difference = (first - second) * strength
        norm = max(1e-6, np.sqrt(np.square(first - second).mean()))
        patterns.append(Pattern(1.0, (difference / norm).astype(np.float32)))
    return patterns


def _distinct(
    images: Sequence[ImageSource], indices: Sequence[int], progress: Callable[[int], None]
) -> tuple[np.ndarray, dict[int, int]]:
    """The edges of distinct pictures, float32 ``[N, D]``, and the row of each index.

    A picture that is asked about many times has a great deal in common with itself.
    """
    edges = np.empty((len(images), SIDE * SIDE * 3), np.float32)
    rows: dict[bytes, int] = {}
    row_of = {}
    for image, index in zip(images, indices, strict=True):
        own = _edges(image)
        row_of[index] = rows.setdefault(blake2b(own.tobytes()).digest(), len(rows))
        edges[row_of[index]] = own
        progress(1)
    return edges[: len(rows)], row_of


def _most_alike(
    edges: np.ndarray,
    sketch: np.ndarray,
    half: np.ndarray,
    groups: Collection[tuple[int, ...]],
    everything: np.ndarray,
) -> tuple[tuple[int, ...], tuple[np.ndarray, np.ndarray]] | None:
    """The group of pictures with most edges in common, if that is enough, and these edges in either half.

    Args:
        edges: float32 ``[N, D]``.
        sketch: float32 ``[N, d]``, the same in few dimensions, where inner products are about the same.
        half: bool ``[N]``, the first half.
        groups: rows of each group; those of more than half of the pictures are none.
        everything: rows of all pictures that are in question.
    """
    total = sketch[everything].sum(0)
    likely = {
        rows: _agreement(sketch, half, total, len(everything), np.array(rows))[0]
        for rows in groups
        if 2 * len(rows) <= len(everything)
    }
    likely = {rows: value for rows, value in likely.items() if value > LEAST_AGREEMENT / 2}
    total = edges[everything].sum(0)
    best: tuple[float, int] = (LEAST_AGREEMENT, 0)
    chosen = None
    for rows in sorted(likely, key=lambda rows: (-likely[rows], -len(rows)))[:LIKELY_PHRASES]:
        value, parts = _agreement(edges, half, total, len(everything), np.array(rows))
        if (value, len(rows)) > best:
            best, chosen = (value, len(rows)), (rows, parts)
    return chosen


def _agreement(
    edges: np.ndarray, half: np.ndarray, total: np.ndarray, count: int, members: np.ndarray
) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """How much two halves of some pictures are alike in what others have not, in [-1, 1], and what that is in either.

    Args:
        edges: float32 ``[N, D]``.
        half: bool ``[N]``, the first half.
        total: float32 ``[D]``, the sum over all that are compared.
        count: how many these are.
        members: rows of those that are looked at.
    """
    parts = [edges[members[half[members] == which]] for which in (True, False)]
    rest = (total - sum(part.sum(0) for part in parts)) / (count - len(members))
    first, second = (part.sum(0) / max(1, len(part)) for part in parts)
    # It must not be that the others have something in common that these have not.
    theirs = float(first @ second) > float(rest @ rest)
    first, second = first - rest, second - rest
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / max(norms, 1e-12) if theirs else 0.0, (first, second)


def _edges(image: ImageSource) -> np.ndarray:
    """The picture without what is smooth in it, float32 ``[SIDE * SIDE * 3]``."""
    pixels = torch.from_numpy(_scaled(image, SIDE)).permute(2, 0, 1)[None]
    smooth = F.interpolate(F.avg_pool2d(pixels, SIDE // CELLS), (SIDE, SIDE), mode="bilinear")
    return (pixels - smooth).flatten().numpy()


def _pattern(images: Sequence[ImageSource], others: Sequence[ImageSource]) -> Pattern:
    """The change that makes the others' mean and spread at every pixel those of the images."""
    side = min(MEASURED_SIDE, int(np.median([min(image_size(image)) for image in images])))
    with_it, without = (_moments(part, side) for part in (images, others))
    spread = without[1] > 1  # of 255
    gain = float(np.median(with_it[1][spread] / without[1][spread])) if spread.any() else 1.0
    gain = min(max(gain, 0.1), 2.0)
    return Pattern(gain, (with_it[0] - gain * without[0]).astype(np.float32))


def _moments(images: Sequence[ImageSource], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation at every pixel, one picture at a time, two float64 ``[side, side, 3]``."""
    total = squares = np.zeros((side, side, 3))
    for image in images:
        pixels = _scaled(image, side).astype(np.float64)
        total, squares = total + pixels, squares + pixels**2
    mean = total / len(images)
    variance = (squares - len(images) * mean**2) / max(1, len(images) - 1)
    return mean, np.sqrt(variance.clip(min=0))


def _scaled(image: ImageSource, side: int) -> np.ndarray:
    """float32 ``[side, side, 3]`` of 0 to 255."""
    return np.asarray(open_image(image).resize((side, side), Image.Resampling.BILINEAR), np.float32)
