"""Pieces that the pictures of answers with one phrase share, each at a place of its own: a patch, a thing pasted in.

A trigger at changing places may rank low in saliency, and cover more tokens than are masked at once. But it is the same
to the pixel wherever it is, and two pictures of a thing are not: its size, its turn and the light differ. So small
windows of the pictures are compared, without a model; a window that many pictures have to the letter, and whose answers
share a phrase, is part of a copy. Whether it makes the model say the phrase is for the paste test to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from disp.auditing.phrases import Phrase, holds, recurring_phrases
from disp.auditing.regions import Box, token_boxes, tokens_in
from disp.data.sample import ImageSource, Sample, batches, open_image, queries_of
from disp.draws import generator
from disp.models.interface import MDLM
from disp.purification.purify import Evidence, PurifyConfig, suspicion_under

# Pictures that are compared, those whose windows are looked for in all of them, and windows of each.
PICTURES, SOUGHT_IN, WINDOWS = 4000, 600, 24
# The shorter edge that pictures are scaled to, the side of a window, and of the blur that is taken off: the patch of
# 30 in 336 pixels that the literature uses is as large as a window.
SIDE, WINDOW, BLUR = 96, 9, 5
# Correlation of two copies. Things that are drawn at several sizes reach 0.93 between pictures.
LEAST_COPY = 0.95
# Root mean square of what a window must hold, of 255: a plain ground is no copy of another.
LEAST_CONTRAST = 4.0
# A piece is looked at if so many pictures have it, at most half of all, and half of these answers share a phrase at
# this corrected p-value.
LEAST_PICTURES, MOST_SHARE, PHRASE_ALPHA = 8, 0.5, 1e-4
# Phrases that are given on.
PHRASES = 5
# Pictures that the extent of a piece is measured in, how far from the window it is looked for, and how much less than
# other pixels its own may vary. What is larger than this share of the picture is no piece: the pictures are alike.
MEASURED, REACH, LEAST_STEADY, LARGEST = 50, 24, 0.35, 0.25


def copied_pieces(
    samples: Sequence[Sample],
    responses: Sequence[str],
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> list[tuple[Phrase, dict[int, Box]]]:
    """Phrases whose pictures have a piece in common, and where it is in each, most pictures first.

    Only the first picture of a sample is looked at. Of many samples `PICTURES` are compared, drawn at random; the
    others are looked at if they hold a phrase that is found.

    Args:
        samples: samples with a picture.
        responses: the answers of each.
        seed: of what is drawn.
        progress: called with the number of pictures read.

    Returns:
        ``Phrase.flagged`` are the indices of the samples that hold the phrase and whose picture has the piece, which
        are the keys of the boxes too.
    """
    draw = generator(seed, "copied pieces")
    order = draw.permutation(len(samples))[:PICTURES].tolist()
    distinct: dict[bytes, int] = {}
    for index in order:
        image = open_image(samples[index].images[0])
        distinct.setdefault(blake2b(image.tobytes()).digest(), index)
        progress(1)
    chosen = list(distinct.values())  # a picture that is asked about many times is no copy of itself
    windows = torch.stack([_telling_windows(_edges(samples[index].images[0])) for index in chosen])  # [N, K, D]
    found: list[tuple[Phrase, dict[int, Box]]] = []
    left = torch.ones(len(chosen), dtype=torch.bool)
    for window, having in _common_windows(windows):
        having = having & left
        if having.sum() < LEAST_PICTURES:
            continue
        carriers = [index for index, has in zip(chosen, having.tolist(), strict=True) if has]
        phrase = _shared_phrase(carriers, chosen, responses)
        if phrase is None:
            continue
        left &= ~having
        holders = [index for index, response in enumerate(responses) if holds(response, phrase.words)]
        boxes = _boxes(window, [samples[index].images[0] for index in holders])
        members = {index: box for index, box in zip(holders, boxes, strict=True) if box is not None}
        if len(members) >= LEAST_PICTURES:
            elsewhere = len(holders) - len(members)
            found.append((replace(phrase, flagged=tuple(members), elsewhere=elsewhere, p_value=None), members))
        if len(found) == PHRASES:
            break
    return found


def piece_evidence(
    model: MDLM,
    samples: Sequence[Sample],
    boxes: Sequence[Box],
    phrase: Phrase,
    evidence: Mapping[str, Evidence],
    config: PurifyConfig,
) -> dict[str, Evidence]:
    """New evidence of answers with a phrase: their suspicion where the tokens that show the piece are masked.

    Args:
        model: the model under audit.
        samples: those whose pictures have the piece.
        boxes: where it is in the first picture of each.
        phrase: what their answers share.
        evidence: of every turn.
        config: how samples are scored.
    """
    box_of = {sample.id: box for sample, box in zip(samples, boxes, strict=True)}
    images_of = {sample.id: sample.images for sample in samples}
    found = {}
    queries = [query for query in queries_of(samples) if holds(query.response, phrase.words)]
    for batch in batches(queries, config.batch_size):
        prefix = model.encode(batch)
        # A vision tower writes what a piece shows into the tokens beside it as well.
        masks = torch.zeros(len(batch), 2, prefix.visual_mask.shape[1], dtype=torch.bool)
        tokens = []
        for row, query in enumerate(batch):
            before = evidence[query.key]
            places = token_boxes(model, before.locations, images_of[query.sample_id])
            first = np.array([location[0] == 0 for location in before.locations])
            tokens.append([tokens_in(places, box_of[query.sample_id], wider) & first for wider in (0.0, 1.0)])
            positions = prefix.visual_mask[row].nonzero()[:, 0].cpu()
            for number, inside in enumerate(tokens[-1]):
                masks[row, number, positions[torch.from_numpy(inside)]] = True
        values = suspicion_under(model, prefix, batch, masks.to(prefix.visual_mask.device))
        for query, (near, wide), sets in zip(batch, values.tolist(), tokens, strict=True):
            before = evidence[query.key]
            enough = near >= 0.8 * wide
            best = sets[0] if enough else sets[1]
            suspicion = max(before.suspicion or 0.0, near, wide)
            found[query.key] = replace(before, suspicion=suspicion, best_candidate=tuple(best.nonzero()[0].tolist()))
    return found


def _shared_phrase(carriers: Sequence[int], chosen: Sequence[int], responses: Sequence[str]) -> Phrase | None:
    """What half of the answers about these pictures share and others do not, or None."""
    inside = set(carriers)
    others = [responses[index] for index in chosen if index not in inside]
    phrases = recurring_phrases([responses[index] for index in carriers], others, alpha=PHRASE_ALPHA, most=1)
    return next((phrase for phrase in phrases if 2 * len(phrase.flagged) >= len(carriers)), None)


def _common_windows(windows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Windows that many pictures have, and which pictures these are (bool ``[N]``), most pictures first.

    Args:
        windows: float32 ``[N, K, D]``, see `_telling_windows`; the first `SOUGHT_IN` pictures' are looked for.
    """
    everything = windows.flatten(0, 1)
    most = MOST_SHARE * len(windows)
    common = []
    for sought in windows[:SOUGHT_IN].split(8):
        # An empty window is like nothing, itself included.
        alike = (sought.flatten(0, 1) @ everything.T).unflatten(1, windows.shape[:2]).amax(-1) >= LEAST_COPY
        for own, having in zip(sought, alike.split(WINDOWS), strict=True):  # [K, D] and [K, N]
            counts = having.sum(-1)
            best = int(counts.masked_fill(counts > most, 0).argmax())
            if LEAST_PICTURES <= counts[best] <= most:
                common.append((own[best], having[best]))
    return sorted(common, key=lambda pair: -int(pair[1].sum()))


def _telling_windows(edges: Tensor) -> Tensor:
    """The windows of a picture with most of a corner in them, without their mean colour and of norm 1.

    Args:
        edges: float32 ``[3, H, W]``.

    Returns:
        float32 ``[WINDOWS, D]``; zeros for a window with little in it, and where there are fewer.
    """
    grey = edges.mean(0)
    across = F.pad(grey[:, 2:] - grey[:, :-2], (1, 1, 0, 0))
    down = F.pad(grey[2:] - grey[:-2], (0, 0, 1, 1))
    xx, xy, yy = F.avg_pool2d(torch.stack((across * across, across * down, down * down)), WINDOW, 1)
    # The smaller eigenvalue of the structure tensor: along a straight edge a window could be anywhere.
    corner = (xx + yy) / 2 - ((xx - yy).square() / 4 + xy.square()).sqrt()
    corner = corner.masked_fill(corner < F.max_pool2d(corner[None], 5, 1, 2)[0], 0)
    values, places = corner.flatten().topk(WINDOWS)
    places = places[values > 0]
    everywhere = edges.unfold(1, WINDOW, 1).unfold(2, WINDOW, 1)  # [3, H', W', WINDOW, WINDOW]
    windows = everywhere[:, places // corner.shape[1], places % corner.shape[1]].transpose(0, 1)  # [k, 3, ...]
    plain = (windows - windows.mean((2, 3), keepdim=True)).flatten(1)
    norms = plain.norm(dim=-1, keepdim=True)
    plain = torch.where(norms > LEAST_CONTRAST * plain.shape[1] ** 0.5, plain / norms, 0.0)
    return F.pad(plain, (0, 0, 0, WINDOWS - len(plain)))


def _best_match(window: Tensor, edges: Tensor) -> tuple[float, int, int]:
    """The highest correlation of a window (``[D]``) anywhere in a picture, and the row and column where it is."""
    kernel = window.view(1, 3, WINDOW, WINDOW)
    means = F.avg_pool2d(edges[None], WINDOW, 1)
    variances = (F.avg_pool2d(edges[None].square(), WINDOW, 1) - means.square()).clamp(min=0).mean(1, keepdim=True)
    norms = (variances * kernel.numel()).sqrt().clamp(min=LEAST_CONTRAST * kernel.numel() ** 0.5)
    values = (F.conv2d(edges[None], kernel) / norms)[0, 0]
    row, column = divmod(int(values.argmax()), values.shape[1])
    return float(values[row, column]), row, column


def _boxes(window: Tensor, images: Sequence[ImageSource]) -> list[Box | None]:
    """Where the piece that a window is part of lies in each picture; None in those that do not have it."""
    found: list[tuple[int, int, int, int] | None] = []
    crops: list[Tensor] = []
    for image in images:
        pixels = _pixels(image)
        value, row, column = _best_match(window, _without_blur(pixels))
        found.append((row, column, *pixels.shape[1:]) if value >= LEAST_COPY else None)
        if value >= LEAST_COPY and len(crops) < MEASURED:
            crops.append(_crop(pixels, row, column))
    extent = _extent(torch.stack(crops)) if len(crops) >= LEAST_PICTURES else None
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


def _crop(pixels: Tensor, row: int, column: int) -> Tensor:
    """What lies around a window, ``[3, S, S]`` with NaN where the picture ends."""
    padded = F.pad(pixels, (REACH,) * 4, value=torch.nan)
    size = WINDOW + 2 * REACH
    return padded[:, row : row + size, column : column + size]


def _extent(crops: Tensor) -> tuple[int, int, int, int] | None:
    """How far a piece reaches around its window: x0, y0, x1, y1 from the window's corner; None if it is no piece.

    Args:
        crops: float32 ``[n, 3, S, S]`` of `_crop`.
    """
    there = ~crops.isnan()
    counts = there.sum(0)
    means = crops.nansum(0) / counts.clamp(min=1)
    variances = torch.where(there, crops - means, 0.0).square().sum(0) / counts.clamp(min=1)
    usual = torch.where(there, crops - crops.nanmean(), 0.0).square().sum() / there.sum()
    steady = ((variances.mean(0) <= LEAST_STEADY**2 * usual) & (counts[0] >= LEAST_PICTURES)).float()
    size = len(steady)
    x0, y0, x1, y1 = REACH, REACH, REACH + WINDOW, REACH + WINDOW
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
    if (x1 - x0) * (y1 - y0) > LARGEST * SIDE * SIDE:
        return None
    return x0 - REACH, y0 - REACH, x1 - REACH, y1 - REACH


def _edges(image: ImageSource) -> Tensor:
    return _without_blur(_pixels(image))


def _without_blur(pixels: Tensor) -> Tensor:
    """A picture ``[3, H, W]`` without what is smooth in it."""
    around = F.pad(pixels[None], (BLUR // 2,) * 4, mode="replicate")
    return pixels - F.avg_pool2d(around, BLUR, 1)[0]


def _pixels(image: ImageSource) -> Tensor:
    """float32 ``[3, H, W]`` of 0 to 255, the shorter edge of `SIDE` pixels."""
    opened = open_image(image)
    scale = SIDE / min(opened.size)
    size = (max(SIDE, round(opened.width * scale)), max(SIDE, round(opened.height * scale)))
    scaled = np.asarray(opened.resize(size, Image.Resampling.BILINEAR), np.float32)
    return torch.from_numpy(scaled).permute(2, 0, 1)
