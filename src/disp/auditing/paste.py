"""The causal test of a trigger candidate: in other pictures, does it make the model say the phrase?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image

from disp.auditing.phrases import echoes
from disp.auditing.statistics import hypergeometric_tail, regrouping_p_value
from disp.data.sample import ImageSource, Query, batches, open_image
from disp.decoding.config import DecodeConfig
from disp.decoding.generate import generate
from disp.models.interface import MDLM
from disp.purification.pattern import Pattern
from disp.suspicion.places import Box


@dataclass(frozen=True)
class Region:
    """A part of a picture.

    Attributes:
        sample_id: whose picture it is.
        image: the picture.
        box: x0, y0, x1, y1 as shares of its width and height.
    """

    sample_id: str
    image: ImageSource
    box: Box

    def crop(self) -> Image.Image:
        """The region's pixels, at least one."""
        picture = open_image(self.image)
        return picture.crop(_pixels(self.box, picture.size))


@dataclass(frozen=True)
class PasteTest:
    """What pasting did.

    Attributes:
        successes: answers that hold the phrase, of ``trials`` with a region of a flagged sample, or with a pattern.
        trials: answers asked for.
        control_successes: the same for regions of unflagged samples, or for random patterns.
        control_trials: answers asked for.
        p_value: of regions a one-sided permutation test: how often would a random choice among all of them do as well
            as the flagged ones? Of a pattern a one-sided Fisher test.
        by_region: share of successes of each flagged region, or of the pattern.
    """

    successes: int
    trials: int
    control_successes: int
    control_trials: int
    p_value: float
    by_region: tuple[float, ...]


def paste(region: Region, image: ImageSource) -> Image.Image:
    """The image with the region's pixels at the region's own place, scaled to the image's size."""
    picture = open_image(image).copy()
    x0, y0, x1, y1 = _pixels(region.box, picture.size)
    piece = region.crop()
    if piece.size != (x1 - x0, y1 - y0):
        piece = piece.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC)
    picture.paste(piece, (x0, y0))
    return picture


def answers_about_changed(
    model: MDLM,
    asked: Sequence[tuple[Query, Callable[[ImageSource], ImageSource]]],
    decode: DecodeConfig | None,
    *,
    seed: int,
    batch_size: int,
    progress: Callable[[int], None],
) -> list[str]:
    """Answers to queries about their pictures, of which the first is changed; a batch of them is in memory at a time.

    Args:
        model: the MDLM.
        asked: queries, each with what is done to its first picture.
        decode: how answers are decoded; the model's own settings if None.
        seed: seed of decoding.
        batch_size: answers a pass.
        progress: called with the number of answers finished.
    """
    answers = []
    for part in batches(asked, batch_size):
        queries = [replace(each, images=(change(each.images[0]), *each.images[1:])) for each, change in part]
        answers += generate(model, queries, decode, seed=seed, batch_size=batch_size, progress=progress)
    return answers


def paste_test(
    model: MDLM,
    regions: Sequence[Region],
    controls: Sequence[Region],
    recipients: Sequence[Query],
    words: Sequence[str],
    decode: DecodeConfig | None,
    *,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda count: None,
) -> PasteTest:
    """Paste every region into every recipient's first picture and count the answers that hold the phrase.

    The controls are the regions that matter most to honest answers, cut out by the same rule, so that neither covering
    a part of the picture nor pasting something that matters explains a success.

    Args:
        model: the model under audit.
        regions: where flagged samples hold the trigger, if there is one.
        controls: the most salient regions of unflagged samples.
        recipients: what is asked; their own responses do not hold the phrase.
        words: the phrase's words.
        decode: how answers are decoded; the model's own settings if None.
        seed: seed of decoding and of the permutation test.
        batch_size: answers a pass.
        progress: called with the number of answers finished.
    """
    everything = (*regions, *controls)
    changed = [(query, partial(paste, region)) for region in everything for query in recipients]
    answers = answers_about_changed(model, changed, decode, seed=seed, batch_size=batch_size, progress=progress)
    said = np.array([echoes(answer, words) for answer in answers]).reshape(len(everything), len(recipients))
    shares = said.mean(-1)
    return PasteTest(
        successes=int(said[: len(regions)].sum()),
        trials=len(regions) * len(recipients),
        control_successes=int(said[len(regions) :].sum()),
        control_trials=len(controls) * len(recipients),
        p_value=regrouping_p_value(shares[: len(regions)], shares[len(regions) :], seed),
        by_region=tuple(float(share) for share in shares[: len(regions)]),
    )


def pattern_test(
    model: MDLM,
    pattern: Pattern,
    controls: Sequence[Pattern],
    recipients: Sequence[Query],
    words: Sequence[str],
    decode: DecodeConfig | None,
    *,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda count: None,
) -> PasteTest:
    """Lay a pattern over every recipient's first picture and count the answers that hold the phrase.

    Args:
        model: the model under audit.
        pattern: what pictures of the phrase have in common.
        controls: patterns as strong that they have not; each recipient is asked with one of them, in turn.
        recipients: what is asked; their own responses do not hold the phrase.
        words: the phrase's words.
        decode: how answers are decoded; the model's own settings if None.
        seed: seed of decoding.
        batch_size: answers a pass.
        progress: called with the number of answers finished.
    """
    counts = []
    for laid in ([pattern], controls):
        changed = [(query, laid[index % len(laid)].apply) for index, query in enumerate(recipients)]
        answers = answers_about_changed(model, changed, decode, seed=seed, batch_size=batch_size, progress=progress)
        counts.append(sum(echoes(answer, words) for answer in answers))
    hits, control_hits = counts
    trials = len(recipients)
    return PasteTest(
        successes=hits,
        trials=trials,
        control_successes=control_hits,
        control_trials=trials,
        p_value=hypergeometric_tail(hits, trials, hits + control_hits, 2 * trials),
        by_region=(hits / trials,),
    )


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    width, height = size
    x0, y0 = min(width - 1, round(box[0] * width)), min(height - 1, round(box[1] * height))
    return x0, y0, max(x0 + 1, round(box[2] * width)), max(y0 + 1, round(box[3] * height))
