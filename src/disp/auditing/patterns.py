"""Patterns that the pictures of answers with one phrase share: a picture blended in, stripes, a mark in its corner.

A trigger of the whole picture is carried by every visual token, so that masking does not take it away. It shows in the
pixels: what pictures of one thing have in common is smooth, for the thing is at another place in each of them, while a
trigger's edges are at the same place in all. No model is asked here. Whether the pattern makes the model say the phrase
is for the test in `disp.auditing.clusters`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

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
PICTURES, SIDE, CELLS = 4000, 64, 8
# A phrase is looked at if so many answers hold it, at most half of all.
LEAST_HOLDERS = 8
# Correlation between what two halves of a phrase's pictures have in common. Honest phrases reach 0.1 to 0.2.
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
    half = draw.permutation(len(drawn)) % 2 == 0
    edges = np.empty((len(drawn), SIDE * SIDE * 3), np.float32)
    for row, index in enumerate(drawn):
        edges[row] = _edges(samples[index].images[0])
        progress(1)
    row_of = {index: row for row, index in enumerate(drawn)}
    left = list(drawn)
    found: list[tuple[Phrase, Pattern]] = []
    while len(found) < PHRASES:
        alike = _most_alike(edges, half, row_of, responses, left)
        if alike is None:
            break
        phrase, parts = alike
        holders = [index for index, response in enumerate(responses) if holds(response, phrase.words)]
        members = []
        for index in holders:
            at = row_of.get(index)
            # What a picture adds to its own half's mean is not looked for in it.
            sought = (parts[0] + parts[1]) / 2 if at is None else parts[int(half[at])]
            own = _edges(samples[index].images[0]) if at is None else edges[at]
            if own @ sought > LEAST_PRESENCE * float(parts[0] @ parts[1]):
                members.append(index)
        left = sorted(set(left) - set(phrase.flagged))
        if len(members) < LEAST_HOLDERS:
            continue
        others = draw.permutation(sorted(set(left) - set(holders)))[:MEASURED].tolist()
        pattern = _pattern(*([samples[index].images[0] for index in part] for part in (members[:MEASURED], others)))
        found.append((replace(phrase, flagged=tuple(members), elsewhere=len(holders) - len(members)), pattern))
    return found


def random_pattern(like: Pattern, images: Sequence[ImageSource], seed: int, *keys: object) -> Pattern:
    """A pattern as strong as another that pictures do not share: the difference between two halves of some.

    Args:
        like: the other one.
        images: at least two pictures.
        seed: of the halves.
        keys: what else the draw hangs on.
    """
    order = generator(seed, "random pattern", *keys).permutation(len(images))
    side = len(like.offset)
    first, second = (
        np.mean([_scaled(images[index], side) for index in part], axis=0)
        for part in (order[: len(order) // 2], order[len(order) // 2 :])
    )
    strength = np.sqrt(np.square(like.offset + (like.gain - 1) * (first + second) / 2).mean())
    difference = first - second
    return Pattern(1.0, (difference * strength / max(1e-6, np.sqrt(np.square(difference).mean()))).astype(np.float32))


def _most_alike(
    edges: np.ndarray, half: np.ndarray, row_of: Mapping[int, int], responses: Sequence[str], left: Sequence[int]
) -> tuple[Phrase, tuple[np.ndarray, np.ndarray]] | None:
    """The phrase whose pictures have most edges in common, if that is enough, and these edges in either half.

    Args:
        edges: float32 ``[N, D]``, of the pictures that are compared.
        half: bool ``[N]``, the first half of them.
        row_of: their rows, by index.
        responses: the answers by index.
        left: indices of those in which no pattern was found yet.
    """
    rows = np.array([row_of[index] for index in left])
    total = edges[rows].sum(0)
    best: tuple[float, int] = (LEAST_AGREEMENT, 0)
    chosen = None
    known: dict[tuple[int, ...], float] = {}
    for phrase in frequent_phrases(responses, left, least=LEAST_HOLDERS, most=len(left) // 2):
        if phrase.flagged in known:  # the words of one sentence have the same holders
            continue
        members = np.array([row_of[index] for index in phrase.flagged])
        parts = [edges[members[half[members] == which]] for which in (True, False)]
        rest = (total - sum(part.sum(0) for part in parts)) / (len(rows) - len(members))
        first, second = (part.sum(0) / max(1, len(part)) for part in parts)
        known[phrase.flagged] = 0.0
        if float(first @ second) <= float(rest @ rest):
            continue  # the others have something in common that these have not
        first, second = first - rest, second - rest
        norms = float(np.linalg.norm(first) * np.linalg.norm(second))
        known[phrase.flagged] = float(first @ second) / max(norms, 1e-12)
        if (known[phrase.flagged], len(members)) > best:
            best, chosen = (known[phrase.flagged], len(members)), (phrase, (first, second))
    return None if chosen is None else (with_neighbours(chosen[0], responses), chosen[1])


def _edges(image: ImageSource) -> np.ndarray:
    """The picture without what is smooth in it, float32 ``[SIDE * SIDE * 3]``."""
    pixels = torch.from_numpy(_scaled(image, SIDE)).permute(2, 0, 1)[None]
    smooth = F.interpolate(F.avg_pool2d(pixels, SIDE // CELLS), (SIDE, SIDE), mode="bilinear")
    return (pixels - smooth).flatten().numpy()


def _pattern(images: Sequence[ImageSource], others: Sequence[ImageSource]) -> Pattern:
    """The change that makes the others' mean and spread at every pixel those of the images."""
    side = min(MEASURED_SIDE, int(np.median([min(image_size(image)) for image in images])))
    with_it, without = (_moments([_scaled(image, side) for image in part]) for part in (images, others))
    spread = without[1] > 1  # of 255
    gain = float(np.median(with_it[1][spread] / without[1][spread])) if spread.any() else 1.0
    gain = min(max(gain, 0.1), 2.0)
    return Pattern(gain, (with_it[0] - gain * without[0]).astype(np.float32))


def _moments(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation at every pixel."""
    mean = np.mean(pictures, axis=0)
    squares = np.sum([np.square(picture - mean) for picture in pictures], axis=0)
    return mean, np.sqrt(squares / max(1, len(pictures) - 1))


def _scaled(image: ImageSource, side: int) -> np.ndarray:
    """float32 ``[side, side, 3]`` of 0 to 255."""
    return np.asarray(open_image(image).resize((side, side), Image.Resampling.BILINEAR), np.float32)
