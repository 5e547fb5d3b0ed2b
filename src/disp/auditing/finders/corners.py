"""Pieces that the pictures of answers with one phrase share, as many pixels from a corner in pictures of all sizes.

A square of 20 pixels in a corner covers another share of each picture where their sizes differ, so that pictures which
are scaled to one size show it blurred, each in its own way. Here the corners are cut out of the pictures at their own
size and compared. What a phrase's pictures have in common is measured in two halves of them, and each half's measure
decides about the other half, so that no picture is compared with itself. No model is asked here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import blake2b

import numpy as np
import torch
from PIL import Image

from disp.auditing.config import AuditConfig
from disp.auditing.finder_config import CornersConfig
from disp.auditing.finders.pieces import Part, Piece, alike, edges_of, piece_of
from disp.auditing.finders.shelf import Arrays, Shelf
from disp.auditing.phrase_search import Shared, frequent_phrases, recurring_phrases
from disp.auditing.phrases import Phrase, holds, joined
from disp.data.sample import ImageSource, Sample, image_size, open_image
from disp.draws import generator
from disp.suspicion.places import Box

# Shares of what a crop leaves free across and down.
CORNERS = {"top-left": (0, 0), "top-right": (1, 0), "bottom-left": (0, 1), "bottom-right": (1, 1)}


def shared_corners(
    samples: Sequence[Sample],
    responses: Sequence[str],
    config: AuditConfig,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> list[tuple[Shared, dict[int, Box]]]:
    """Phrases whose pictures have a piece in common that lies as many pixels from a corner in all of them.

    Only the first picture of a sample is looked at. Of many samples some are compared, drawn at random; the others are
    looked at if they hold a phrase that is found. Pictures of one size are compared as well: what is black before dark
    grounds has no edge there, and a pattern is known by its edges.

    Args:
        samples: samples with a picture.
        responses: the answers of each.
        config: its ``corners``, ``phrases`` and ``seed``.
        progress: called with the number of pictures compared.

    Returns:
        A phrase's holders are the samples that say it and whose picture has the piece, which are the keys of the boxes
        too. Several pieces of one phrase are one entry, with a box of one of them in each.
    """
    settings = config.corners
    draw = generator(config.seed, "shared corners")
    drawn = np.sort(draw.permutation(len(samples))[: settings.pictures]).tolist()
    shorter = [min(image_size(samples[index].images[0])) for index in drawn]
    side = min(settings.side, int(np.median(shorter)) // 2) if shorter else 0
    if side < settings.least_side:
        progress(len(drawn))
        return []
    crops, row_of = _distinct([samples[index].images[0] for index in drawn], drawn, side, progress)
    count = len(crops[0])
    half = draw.permutation(count) % 2 == 0
    most = int(settings.most_share * len(drawn))
    phrases = list(frequent_phrases(responses, drawn, config.phrases, least=settings.least_pictures, most=most))
    found: dict[tuple[str, ...], dict[int, Box]] = {}
    named: dict[tuple[str, ...], Phrase] = {}
    left = np.ones(count, bool)
    texts = _texts(responses, row_of)
    for own, corner in zip(crops, CORNERS.values(), strict=True):
        sketch = _sketch(own, settings, config.seed)
        while len(found) < settings.phrases:
            groups = {
                tuple(sorted({row_of[index] for index in shared.holders if left[row_of[index]]})) for shared in phrases
            }
            next_piece = _next_piece(own, sketch, half, left, groups, texts, config)
            if next_piece is None:
                break
            piece, phrase = next_piece
            left &= ~piece.having
            boxes: dict[int, Box] = {}
            for index, response in enumerate(responses):
                if not holds(response, phrase.words):
                    continue
                image = samples[index].images[0]
                at = row_of.get(index)
                has = piece.shown_in(_crop(image, side, corner), settings) if at is None else bool(piece.members[at])
                if has:
                    boxes[index] = _box(piece.part, image_size(image), side, corner, settings.blur // 2)
            named[phrase.words] = phrase
            found[phrase.words] = boxes | found.get(phrase.words, {})
    result = []
    for words, boxes in found.items():
        elsewhere = sum(holds(response, words) for response in responses) - len(boxes)
        result.append((Shared(named[words], tuple(sorted(boxes)), elsewhere), dict(sorted(boxes.items()))))
    return sorted(result, key=lambda each: -len(each[1]))


def _distinct(
    images: Sequence[ImageSource], indices: Sequence[int], side: int, progress: Callable[[int], None]
) -> tuple[list[Shelf], dict[int, int]]:
    """The corners of distinct pictures, uint8 ``[N, side, side, 3]`` of each corner, and the row of each index.

    A picture that is asked about many times has a great deal in common with itself. Pictures are told apart as a whole:
    many have nothing but a plain ground in their corners.
    """
    crops = [Shelf((side, side, 3), np.uint8) for _ in CORNERS]
    rows: dict[bytes, int] = {}
    row_of = {}
    for image, index in zip(images, indices, strict=True):
        opened = open_image(image)
        own = np.stack([_crop(opened, side, corner) for corner in CORNERS.values()])
        before = len(rows)
        row_of[index] = rows.setdefault(_digest(opened), before)
        if row_of[index] == before:
            for shelf, crop in zip(crops, own, strict=True):
                shelf.append(crop)
        progress(1)
    return crops, row_of


def _digest(picture: Image.Image) -> bytes:
    """What tells a picture from others."""
    return blake2b(repr(picture.size).encode() + picture.tobytes()).digest()


def _crop(image: ImageSource, side: int, corner: tuple[int, int]) -> np.ndarray:
    """A corner of a picture, uint8 ``[side, side, 3]``; a smaller picture's last pixels are repeated."""
    opened = open_image(image)
    x, y = (share * (length - side) for share, length in zip(corner, opened.size, strict=True))
    pixels = np.asarray(opened.crop((max(0, x), max(0, y), max(0, x) + side, max(0, y) + side)))
    width, height = (min(side, length) for length in opened.size)
    if (width, height) == (side, side):
        return pixels
    free = side - height, side - width
    around = [(space, 0) if share else (0, space) for share, space in zip(corner[::-1], free, strict=True)]
    return np.pad(pixels[:height, :width], (*around, (0, 0)), mode="edge")


def _box(part: Part, size: tuple[int, int], side: int, corner: tuple[int, int], around: int) -> Box:
    """Where a part of a corner lies in a picture of a size, as shares of its width and height.

    Edges are seen so many pixels ``around`` what they are of.
    """
    x, y = (share * (length - side) for share, length in zip(corner, size, strict=True))
    x0, y0 = (each + around if each > 0 else 0 for each in part[:2])
    x1, y1 = (each - around if each < side else side for each in part[2:])
    ends = (x + x0) / size[0], (y + y0) / size[1], (x + x1) / size[0], (y + y1) / size[1]
    return tuple(min(1.0, max(0.0, end)) for end in ends)  # type: ignore[return-value]


def _sketch(crops: Arrays, config: CornersConfig, seed: int) -> np.ndarray:
    """The edges of crops in few dimensions where inner products are about the same, float32 ``[N, d]``.

    Every value is added to one of them or taken from it (a count sketch, Charikar et al. 2002).
    """
    draw = generator(seed, "sketch of corners")
    size = 4 * crops.shape[1] * crops.shape[2]
    place = torch.from_numpy(draw.integers(0, config.sketch, size))
    sign = torch.from_numpy(draw.choice(np.array([-1, 1], np.float32), size))
    parts = []
    for start in range(0, len(crops), config.batch):
        rows = range(start, min(start + config.batch, len(crops)))
        edges = torch.from_numpy(edges_of(crops[rows], config)).flatten(1)
        parts.append(torch.zeros(len(edges), config.sketch).index_add_(1, place, edges * sign))
    return torch.cat(parts).numpy()


def _texts(responses: Sequence[str], row_of: Mapping[int, int]) -> list[str]:
    """All answers about each of the distinct pictures."""
    told: list[list[str]] = [[] for _ in range(1 + max(row_of.values()))]
    for index, row in row_of.items():
        told[row].append(responses[index])
    return [joined(each) for each in told]


def _next_piece(
    crops: Arrays,
    sketch: np.ndarray,
    half: np.ndarray,
    left: np.ndarray,
    groups: Collection[tuple[int, ...]],
    texts: Sequence[str],
    config: AuditConfig,
) -> tuple[Piece, Phrase] | None:
    """What the crops of some phrase have in common, most alike first, and the phrase of all that have it.

    Args:
        crops: uint8 ``[N, h, w, 3]``, in memory or on a shelf.
        sketch: see `_sketch`.
        half: bool ``[N]``, the first half.
        left: bool ``[N]``, those that no piece was found in yet.
        groups: rows about which one phrase is said, of each phrase.
        texts: the answers about each crop.
        config: of the audit.
    """
    settings = config.corners
    for saying in _likely(sketch, half, left, groups, settings):
        piece = piece_of(crops, half, saying, left & ~saying, settings)
        phrase = None if piece is None else _phrase_of(piece, left, texts, config)
        if phrase is None:
            continue
        # Those who say this phrase may be others than those by whom the piece was found.
        saying = left & np.array([holds(text, phrase.words) for text in texts])
        piece = piece_of(crops, half, saying, left & ~saying, settings)
        if piece is not None and _phrase_of(piece, left, texts, config) == phrase:
            return piece, phrase
    return None


def _phrase_of(piece: Piece, left: np.ndarray, texts: Sequence[str], config: AuditConfig) -> Phrase | None:
    """What enough of the answers about crops with a piece share and others do not, or None."""
    settings = config.corners
    inside, outside = (
        [text for text, has in zip(texts, part, strict=True) if has]
        for part in (left & piece.having, left & ~piece.having)
    )
    found = recurring_phrases(inside, outside, settings.recurrence, config.phrases)
    least = settings.phrase_share * len(inside)
    return next((shared.phrase for shared in found if len(shared.holders) >= least), None)


def _likely(
    sketch: np.ndarray,
    half: np.ndarray,
    left: np.ndarray,
    groups: Collection[tuple[int, ...]],
    config: CornersConfig,
) -> list[np.ndarray]:
    """The groups (bool ``[N]`` each) whose sketches agree most, as many as are looked at in full."""
    parts = [left & half, left & ~half]
    sums, counts = [sketch[part].sum(0) for part in parts], [int(part.sum()) for part in parts]
    values = {}
    for rows in groups:
        members = np.array(rows, np.int64)
        if not config.least_pictures <= len(members) <= config.most_share * sum(counts):
            continue
        inside = [members[half[members] == which] for which in (True, False)]
        if min(len(part) for part in inside) < config.least_half:
            continue
        own = [sketch[part].sum(0) for part in inside]
        values[rows] = alike(
            [each / len(part) for each, part in zip(own, inside, strict=True)],
            [
                (total - each) / (count - len(part))
                for total, each, count, part in zip(sums, own, counts, inside, strict=True)
            ],
        )
    least = config.sketch_share * config.least_agreement
    chosen = sorted((rows for rows in values if values[rows] > least), key=lambda rows: (-values[rows], -len(rows)))
    result = []
    for rows in chosen[: config.likely]:
        result.append(np.zeros(len(sketch), bool))
        result[-1][list(rows)] = True
    return result
