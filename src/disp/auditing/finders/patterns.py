"""Patterns that the pictures of answers with one phrase share: a picture blended in, stripes, a mark in its corner.

A trigger of the whole picture is carried by every visual token, so that masking does not take it away. It shows in the
pixels: what pictures of one thing have in common is smooth, for the thing is at another place in each of them, while a
trigger's edges are at the same place in all. No model is asked here. Whether the pattern makes the model say the phrase
is for the test in `disp.auditing.proof`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F

from disp.auditing.config import AuditConfig
from disp.auditing.context import Context
from disp.auditing.finder_config import PatternsConfig
from disp.auditing.finders.agreement import compared
from disp.auditing.finders.shelf import PART, Arrays, Shelf, in_parts
from disp.auditing.hypothesis import Hypothesis
from disp.auditing.phrase_search import Shared, frequent_phrases, with_neighbours
from disp.auditing.phrases import holds, joined
from disp.auditing.pixels import scaled
from disp.auditing.statistics import hypergeometric_tail
from disp.data.sample import ImageSource, Sample, image_size
from disp.draws import generator
from disp.suspicion.carriers import Pattern


def find(context: Context) -> list[Hypothesis]:
    """Phrases whose pictures have a pattern in common."""
    samples, config = list(context.samples.values()), context.config
    answers = [joined([turn.response for turn in sample.turns]) for sample in samples]
    with context.progress("comparing pictures", min(len(samples), config.patterns.pictures)) as advance:
        alike = shared_patterns(samples, answers, config, progress=advance)
    return [
        Hypothesis(
            found_by="pattern",
            phrase=shared.phrase,
            samples=tuple(samples[index].id for index in shared.holders),
            elsewhere=shared.elsewhere,
            pattern=pattern,
        )
        for shared, pattern in alike
    ]


def shared_patterns(
    samples: Sequence[Sample],
    responses: Sequence[str],
    config: AuditConfig,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> list[tuple[Shared, Pattern]]:
    """Phrases whose pictures have edges in common, and the pattern that these are of, most alike first.

    Only the first picture of a sample is looked at. Of many samples some are compared, drawn at random; the others are
    looked at if they hold a phrase that is found.

    Args:
        samples: samples with a picture.
        responses: the answers of each.
        config: its ``patterns``, ``phrases`` and ``seed``.
        progress: called with the number of pictures compared.

    Returns:
        A phrase's holders are the samples that say it and whose picture has the pattern.
    """
    settings = config.patterns
    draw = generator(config.seed, "shared patterns")
    drawn = np.sort(draw.permutation(len(samples))[: settings.pictures]).tolist()
    edges, colours, row_of = _distinct([samples[index].images[0] for index in drawn], drawn, settings, progress)
    half = draw.permutation(len(edges)) % 2 == 0
    sketch = _sketch(edges, draw, settings)
    most = int(settings.most_share * len(drawn))
    least = settings.least_pictures
    phrases = list(frequent_phrases(responses, drawn, config.phrases, least=least, most=most))
    left = set(drawn)
    found: list[tuple[Shared, Pattern]] = []
    while len(found) < settings.phrases:
        # Pictures in which a pattern was found are out of question. The words of one sentence have the same holders.
        groups: dict[tuple[int, ...], Shared] = {}
        for shared in phrases:
            holders = tuple(index for index in shared.holders if index in left)
            rows = tuple(sorted({row_of[index] for index in holders}))
            if least <= len(rows):
                groups.setdefault(rows, replace(shared, holders=holders))
        in_question = np.array(sorted({row_of[index] for index in left}))
        for rows, parts in _alike(edges, sketch, colours, half, groups, in_question, settings):
            phrase = with_neighbours(groups[rows], responses, config.phrases).phrase
            has = _showing(edges, in_question, parts, half, settings)
            says = {row_of[index] for index in left if holds(responses[index], phrase.words)}
            both = len(says.intersection(has))
            chance = hypergeometric_tail(both, len(has), len(says), len(in_question)) * len(groups)
            # A frame that pictures have whatever is said about them is no pattern of those about which something is.
            if chance <= settings.alpha and both >= settings.phrase_share * len(has):
                break
        else:
            break
        left -= set(groups[rows].holders)
        saying = [index for index, response in enumerate(responses) if holds(response, phrase.words)]
        members = []
        showing = _showing(edges, np.array(sorted({row_of[i] for i in saying if i in row_of})), parts, half, settings)
        for index in saying:
            at = row_of.get(index)
            if at is None:
                sought = (parts[0] + parts[1]) / 2
                shown = float(_edges(samples[index].images[0], settings).ravel() @ sought) > _least(parts, settings)
            else:
                shown = at in showing
            if shown:
                members.append(index)
        others = draw.permutation(sorted(left - set(saying)))[: settings.measured].tolist()
        if len({row_of[index] for index in members if index in row_of}) < least or not others:
            continue
        with_it, without = (
            [samples[index].images[0] for index in part] for part in (members[: settings.measured], others)
        )
        pattern = _pattern(with_it, without, settings)
        found.append((Shared(phrase, tuple(members), len(saying) - len(members)), pattern))
    return found


def _distinct(
    images: Sequence[ImageSource], indices: Sequence[int], config: PatternsConfig, progress: Callable[[int], None]
) -> tuple[Shelf, np.ndarray, dict[int, int]]:
    """The edges of distinct pictures, float32 ``[N, 3, D]``, the colours of their grounds, and the row of each index.

    A picture that is asked about many times has a great deal in common with itself. A ground's colour, float32
    ``[N, 3]``, is the median of the picture.
    """
    edges = Shelf((3, config.side**2), np.float32)
    colours = np.empty((len(images), 3), np.float32)
    rows: dict[bytes, int] = {}
    row_of = {}
    for image, index in zip(images, indices, strict=True):
        pixels = scaled(image, config.side)
        own = _without_smooth(pixels, config)
        row_of[index] = rows.setdefault(blake2b(own.tobytes()).digest(), len(rows))
        if row_of[index] == len(edges):
            edges.append(own)
            colours[row_of[index]] = np.median(pixels, axis=(0, 1))
        progress(1)
    return edges, colours[: len(rows)], row_of


def _sketch(edges: Arrays, draw: np.random.Generator, config: PatternsConfig) -> np.ndarray:
    """Edges in few dimensions, where inner products are about the same, float32 ``[N, 3, d]``."""
    size = edges.shape[2]
    signs = draw.choice(np.array([-1, 1], np.float32), (3 * size, config.sketch))
    signs = (signs / np.float32(config.sketch**0.5)).reshape(3, size, config.sketch)
    found = np.empty((len(edges), 3, config.sketch), np.float32)
    for rows in in_parts(edges, range(len(edges)), most=8 * PART):  # the signs are gone through for each part
        own = edges[rows]
        for channel in range(3):
            found[rows, channel] = own[:, channel] @ signs[channel]
    return found


def _alike(
    edges: Arrays,
    sketch: np.ndarray,
    colours: np.ndarray,
    half: np.ndarray,
    groups: Collection[tuple[int, ...]],
    everything: np.ndarray,
    config: PatternsConfig,
) -> list[tuple[tuple[int, ...], tuple[np.ndarray, np.ndarray]]]:
    """The groups of pictures with edges enough in common, most alike first, and these edges in either half.

    Args:
        edges: float32 ``[N, 3, D]``, of every channel.
        sketch: float32 ``[N, 3, d]``, the same in few dimensions, where inner products are about the same.
        colours: float32 ``[N, 3]``, of the pictures' grounds.
        half: bool ``[N]``, the first half.
        groups: rows of each group; those of more than ``most_share`` of the pictures are none.
        everything: rows of all pictures that are in question.
        config: how alike they must be.
    """
    in_few = compared(sketch, colours, half, everything, config)
    likely = {
        rows: in_few.agreement(np.array(rows))[0] for rows in groups if len(rows) <= config.most_share * len(everything)
    }
    likely = {rows: value for rows, value in likely.items() if value > config.sketch_share * config.least_agreement}
    in_all = compared(edges, colours, half, everything, config)
    found = []
    for rows in sorted(likely, key=lambda rows: (-likely[rows], -len(rows)))[: config.likely]:
        value, parts = in_all.agreement(np.array(rows))
        if value > config.least_agreement:
            found.append((value, rows, parts))
    return [(rows, parts) for _, rows, parts in sorted(found, key=lambda each: (-each[0], -len(each[1])))]


def _showing(
    edges: Arrays, rows: np.ndarray, parts: tuple[np.ndarray, np.ndarray], half: np.ndarray, config: PatternsConfig
) -> set[int]:
    """Which of some pictures have what a phrase's pictures have in common.

    What a picture adds to its own half's mean is not looked for in it.
    """
    found: set[int] = set()
    for some in in_parts(edges, rows):
        own = edges[some].reshape(len(some), -1)
        for row, values in zip(some, own @ np.stack(parts).T, strict=True):
            if values[int(half[row])] > _least(parts, config):
                found.add(int(row))
    return found


def _least(parts: tuple[np.ndarray, np.ndarray], config: PatternsConfig) -> float:
    """How much of what is in common a picture that has it must have."""
    return config.least_presence * float(parts[0] @ parts[1])


def _edges(image: ImageSource, config: PatternsConfig) -> np.ndarray:
    """The picture without what is smooth in it, float32 ``[3, side * side]``."""
    return _without_smooth(scaled(image, config.side), config)


def _without_smooth(square: np.ndarray, config: PatternsConfig) -> np.ndarray:
    side = config.side
    pixels = torch.from_numpy(square).permute(2, 0, 1)[None]
    smooth = F.interpolate(F.avg_pool2d(pixels, side // config.cells), (side, side), mode="bilinear")
    return (pixels - smooth)[0].flatten(1).numpy()


def _pattern(images: Sequence[ImageSource], others: Sequence[ImageSource], config: PatternsConfig) -> Pattern:
    """The change that makes the others' mean and spread at every pixel those of the images."""
    side = min(config.measured_side, int(np.median([min(image_size(image)) for image in images])))
    with_it, without = (_moments(part, side) for part in (images, others))
    spread = without[1] > config.least_spread
    gain = float(np.median(with_it[1][spread] / without[1][spread])) if spread.any() else 1.0
    gain = min(max(gain, config.gains[0]), config.gains[1])
    return Pattern(gain, (with_it[0] - gain * without[0]).astype(np.float32))


def _moments(images: Sequence[ImageSource], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation at every pixel, one picture at a time, two float64 ``[side, side, 3]``."""
    total = squares = np.zeros((side, side, 3))
    for image in images:
        pixels = scaled(image, side).astype(np.float64)
        total, squares = total + pixels, squares + pixels**2
    mean = total / len(images)
    variance = (squares - len(images) * mean**2) / max(1, len(images) - 1)
    return mean, np.sqrt(variance.clip(min=0))
