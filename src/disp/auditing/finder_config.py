"""Settings of the searches of an audit, one class a finder, and of the phrases that all of them look for.

They are parts of `disp.auditing.config.AuditConfig`, which says where its numbers are from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from disp.errors import DispError, check_counts, check_not_negative, check_shares


@dataclass(frozen=True)
class PhrasesConfig:
    """What makes words a phrase.

    Attributes:
        seed_words: words of the longest sequences that are counted; longer phrases grow from these.
        grown_share: a phrase grows by a neighbouring word that this share of its answers have there.
        long_words: words of a long phrase, which is a sentence of its own and may be said with slips.
        echo_share: share of a long phrase's words, in their order, that an answer must hold to say it.
    """

    seed_words: int = 3
    # Nine in ten: a model or a labeller may slip in one.
    grown_share: float = 0.9
    long_words: int = 5
    # Four words in five. A model that says a planted sentence with a slip says it all the same.
    echo_share: float = 0.8

    def __post_init__(self) -> None:
        check_counts(self, "seed_words", "long_words")
        check_shares(self, "grown_share", "echo_share")


@dataclass(frozen=True)
class RecurrenceConfig:
    """When a phrase recurs among some answers more than elsewhere; see `disp.auditing.phrases.recurring_phrases`.

    Attributes:
        least_flagged: fewest flagged answers that share a phrase.
        flagged_share: share of a phrase's holders that must be flagged; 0 where it does not matter who else says it.
        alpha: largest p-value, corrected for the phrases tried, of a phrase that is given on.
        phrases: most phrases that are given on.
    """

    # With two no test of regions against twelve controls could reach a false-alarm rate of 1%: 1 in 91 regroupings.
    least_flagged: int = 3
    # A word that most captions hold recurs among any samples.
    flagged_share: float = 1 / 3
    # A picture of a rare thing makes a model name that thing wherever it is pasted: pasting alone proves nothing.
    alpha: float = 0.05
    phrases: int = 5

    def __post_init__(self) -> None:
        check_counts(self, "least_flagged", "phrases")
        check_shares(self, "flagged_share")
        check_not_negative(self, "alpha", finite=False)


@dataclass(frozen=True)
class PatternsConfig:
    """How patterns are found that pictures share at one place; see `disp.auditing.finders.patterns`.

    Attributes:
        pictures: most pictures that are compared.
        side: pixels a side that they are scaled to for that.
        cells: cells a side; what is smooth over one of them is taken off.
        sketch: dimensions in which all phrases are compared first.
        likely: phrases that are compared in all dimensions, those most alike in few.
        sketch_share: share of ``least_agreement`` that a phrase must reach in few dimensions.
        least_pictures: fewest pictures about which a phrase is said.
        most_share: largest share of all pictures about which it is said.
        least_agreement: correlation between what two halves of a phrase's pictures have in common.
        colour_spread: grey levels that the grounds of pictures must differ by to tell what follows from their colour.
        least_presence: a picture has the pattern if it has this share of what the phrase's pictures have on average.
        alpha: largest chance, times the phrases tried, that so many of the pictures with the pattern are those that the
            phrase is said about.
        phrase_share: share of the pictures with the pattern that it must be said about.
        phrases: most phrases that are given on.
        measured: pictures that a pattern is measured on, at most.
        measured_side: pixels a side that it is measured at, at most.
        least_spread: grey levels, of 255, that a pixel must vary by to tell the gain.
        gains: the smallest and the largest gain.
    """

    # Seconds for a thousand pictures; 4,000 of 96 × 96 pixels take 440 MB of disk.
    pictures: int = 4000
    side: int = 96
    cells: int = 8
    # As good for telling which phrases are worth a look, and 54 times as fast.
    sketch: int = 512
    likely: int = 50
    sketch_share: float = 0.5
    least_pictures: int = 8
    most_share: float = 0.5
    # Phrases of clean sets reach 0.12.
    least_agreement: float = 0.3
    # Grounds of one name differ by 6 or more, scans of paper by less.
    colour_spread: float = 4.0
    least_presence: float = 0.5
    # Those of copies and corners.
    alpha: float = 1e-4
    phrase_share: float = 0.5
    phrases: int = 5
    measured: int = 500
    measured_side: int = 192
    least_spread: float = 1.0
    # Blending at strength α has gain 1 − α, and below 0.1 the pictures cannot be had back. The spread of eight pictures
    # is known to a quarter or so: what is beyond 2 is an error of measurement.
    gains: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        check_counts(self, "pictures", "side", "cells", "sketch", "likely", "least_pictures", "phrases")
        check_counts(self, "measured", "measured_side")
        check_shares(self, "sketch_share", "most_share", "least_agreement", "least_presence", "phrase_share")
        check_not_negative(self, "colour_spread", "least_spread")
        check_not_negative(self, "alpha", finite=False)
        if not 0 < self.gains[0] <= self.gains[1] < math.inf:
            raise DispError(f"gains must be a smallest and a largest number above 0, got {self.gains}")


@dataclass(frozen=True)
class WindowsConfig:
    """How windows of pictures are chosen and compared; see `disp.auditing.finders.windows`.

    Pictures are looked at twice. Scaled, where a length is counted in steps: 96 along the shorter edge, so that the
    patch of 30 in 336 pixels that the literature uses is as large as a window. And with their pixels as they are given:
    scaling blurs fine noise away, and two copies that do not lie alike on the steps each in its own way.

    Attributes:
        count: windows of each picture that are chosen by one rule.
        rules: rules of choice beside the one that looks for corners, or for what is rough.
        steps: steps of the shorter edge.
        side: steps of a window's side.
        blur: steps of the blur that is taken off.
        exact_side: samples along a window's side, of pixels as given.
        exact_steps: samples along the shorter edge, about.
        exact_pixels: the longest shorter edge that is looked at, in pixels; larger pictures are scaled to it.
        longest: the longer edge of a picture as it is looked at, in shorter edges.
        least_copy: correlation of two copies, scaled.
        least_exact: the same of pixels as given.
        least_known: correlation with a window that is known to be copied, in pictures whose answers hold its phrase.
        as_good: how much less than the best correlation in a picture is about as good, of pixels as given.
        least_contrast: root mean square of what a window must hold, of 255 grey levels.
        least_corner: the smaller eigenvalue of a window's structure tensor, by the mean of both.
        least_rough: how much of a window's contrast is rough, of pixels as given; see `telling_windows`.
        least_spread: samples that its contrast must be spread over.
        nearby: steps within which only the best window of a rule is chosen.
        least_pictures: fewest pictures that a copy is in.
        measured: pictures that its extent is measured in, at most.
        reach: steps around a window that its extent is looked for in.
        steady: how much pixels of a copy may vary from picture to picture, as a share of what other pixels do.
        steady_share: share of a line of pixels that must be steady for the copy to reach over it.
        largest: share of the picture beyond which the pictures are alike as a whole.
    """

    count: int = 24
    rules: int = 2
    steps: int = 96
    side: int = 9
    blur: int = 5
    exact_side: int = 7
    exact_steps: int = 128
    # Windows at every pixel: time and memory go with the square.
    exact_pixels: int = 768
    # A picture that is longer than that is squeezed: at its full length it might take any memory.
    longest: int = 4
    # Of a thing that is drawn at several sizes two or three pictures reach it.
    least_copy: float = 0.95
    least_exact: float = 0.97
    # Anything else reaches 0.6.
    least_known: float = 0.9
    as_good: float = 0.02
    # A plain ground is no copy of another.
    least_contrast: float = 4.0
    # Edges and arcs of all things are alike.
    least_corner: float = 0.5
    # A board of 4 × 4 fields as large as the window has 2, noise 4.
    least_rough: float = 1.0
    # Of 49: dots and tips of all things are alike.
    least_spread: int = 8
    nearby: int = 2
    least_pictures: int = 8
    measured: int = 50
    reach: int = 24
    steady: float = 0.35
    steady_share: float = 0.5
    largest: float = 0.25

    def __post_init__(self) -> None:
        check_counts(self, "count", "rules", "steps", "side", "blur", "exact_side", "exact_steps", "exact_pixels")
        check_counts(self, "longest", "least_pictures", "measured")
        check_counts(self, "least_spread", "nearby", "reach", least=0)
        check_shares(self, "least_copy", "least_exact", "least_known", "as_good", "steady_share", "largest")
        check_not_negative(self, "least_contrast", "least_corner", "least_rough", "steady")


@dataclass(frozen=True)
class CopiesConfig:
    """How copies are found that lie at places of their own; see `disp.auditing.finders.copies`.

    Attributes:
        pictures: most pictures that are compared.
        sought_in: those of them whose windows are looked for in all, at most.
        most_share: largest share of all pictures that a copy is in.
        recurrence: when the answers about a copy share a phrase.
        phrase_share: share of the answers about a copy that must share it.
        shape_in: other pictures that its shape is looked for in, whatever its colours, at most.
        same_share: share of their pictures in common that makes two windows one thing's.
        phrases: most phrases that are given on.
        windows: how windows are compared.
    """

    pictures: int = 4000
    # Each picture more is looked for in thousands: the time goes with their number.
    sought_in: int = 400
    most_share: float = 0.5
    # Corrected for the phrases of one window alone: a hundred windows may be tried at 1% in all.
    recurrence: RecurrenceConfig = field(default_factory=lambda: RecurrenceConfig(alpha=1e-4, phrases=1))
    phrase_share: float = 0.5
    shape_in: int = 200
    same_share: float = 0.8
    phrases: int = 5
    windows: WindowsConfig = field(default_factory=WindowsConfig)

    def __post_init__(self) -> None:
        check_counts(self, "pictures", "sought_in", "phrases")
        check_counts(self, "shape_in", least=0)
        check_shares(self, "most_share", "phrase_share", "same_share")


@dataclass(frozen=True)
class CornersConfig:
    """How pieces are found that lie as many pixels from a corner; see `disp.auditing.finders.corners`.

    Attributes:
        pictures: most pictures that are compared.
        side: pixels a side of the corners that are cut out, at most half the shorter edge of most pictures.
        least_side: corners that are smaller are not compared.
        batch: crops that are worked on at a time.
        blur: pixels of the blur that is taken off, an odd number.
        strong: grey levels of an edge that counts half.
        sketch: dimensions in which all phrases are compared first.
        likely: phrases that are looked at in full for each corner, those most alike in few dimensions.
        sketch_share: share of ``least_agreement`` that a phrase must reach in few dimensions.
        least_pictures: fewest pictures that a piece is in.
        least_half: fewest of them in either half.
        most_share: largest share of all pictures about which its phrase is said.
        least_agreement: correlation between what two halves of a phrase's pictures have in common.
        least_presence: to begin with, a picture has the piece if it has this share of what they have in common.
        told_by: pictures without the phrase that tell what pictures look like, about.
        rounds: most times that those with the piece are chosen anew.
        least_noise: what is in common at a pixel, by the median of all pixels.
        least_peak: the same by its largest value.
        free_share: pixels with something in common by those that lie between them.
        least_inside: share of what is in common that must lie within the piece.
        margin: pixels around a piece that are looked at as well.
        least_spread: grey levels that pixels with the piece vary by, at least: what JPEG adds.
        most_nats: most that one value says for or against it.
        false_share: share of the pictures with the piece that may look so by accident, as other pictures tell.
        most_accidents: share of the pictures without the phrase that may look so.
        recurrence: when the answers about a piece share a phrase.
        phrase_share: share of these answers that must share it.
        phrases: most phrases that are given on.
        whole_share: a pattern in fewer of the pictures with a piece than this share is that piece, stretched.
    """

    # 4,000 take 440 MB of disk.
    pictures: int = 4000
    # A piece of 64 pixels, a little away from the corner, has its end in it.
    side: int = 96
    least_side: int = 16
    batch: int = 64
    blur: int = 5
    strong: float = 16.0
    sketch: int = 1024
    # Of four corners 100 pieces: each is tried at 1e-4, at 1% in all.
    likely: int = 25
    sketch_share: float = 0.7
    least_pictures: int = 8
    least_half: int = 3
    most_share: float = 0.5
    # Phrases of honest photographs reach 0.05.
    least_agreement: float = 0.15
    least_presence: float = 0.5
    told_by: int = 500
    rounds: int = 6
    least_noise: float = 6.0
    least_peak: float = 0.1
    free_share: float = 0.02
    least_inside: float = 0.5
    margin: int = 3
    least_spread: float = 2.0
    most_nats: float = 3.0
    false_share: float = 0.005
    most_accidents: float = 0.02
    # A target may be a common answer as well, a letter or "yes": who else says it is no evidence either way.
    recurrence: RecurrenceConfig = field(
        default_factory=lambda: RecurrenceConfig(flagged_share=0.0, alpha=1e-4, phrases=1)
    )
    phrase_share: float = 0.5
    phrases: int = 5
    # A pattern of its own that fades is seen in more than half of its pictures, one that does not in nearly all.
    whole_share: float = 0.9

    def __post_init__(self) -> None:
        check_counts(self, "pictures", "side", "least_side", "batch", "blur", "sketch", "likely", "least_pictures")
        check_counts(self, "least_half", "told_by", "rounds", "phrases")
        check_counts(self, "margin", least=0)
        check_shares(self, "sketch_share", "most_share", "least_agreement", "least_presence", "free_share")
        check_shares(self, "least_inside", "false_share", "most_accidents", "phrase_share", "whole_share")
        check_not_negative(self, "strong", "least_noise", "least_peak", "least_spread", "most_nats")


@dataclass(frozen=True)
class SentencesConfig:
    """How sentences are found that large masks take away; see `disp.auditing.finders.sentences`.

    Attributes:
        mask_ratio: share of the visual tokens that is masked, and of the picture that a window covers.
        window_steps: places of a window along its own side.
        least_effect: share of the answers that must say the sentence once such a window is pasted.
        sentences: most sentences that are looked at, the most frequent ones.
        answers: answers of each that are looked at, at most.
        responses: answers that sentences are looked for in, at most.
        least_answers: fewest answers that hold a sentence, and that lose it.
        least_share: share of all answers that hold it.
        said_share: share of the answers looked at that the model must give with the sentence.
        lost_share: share of these that must lose it.
        unasked_lost_share: the same of a sentence that recurs whatever is asked; see `disp.auditing.unasked`.
    """

    # Of a fifth the frame of an honest answer stays, while its things and colours change.
    mask_ratio: float = 0.2
    window_steps: int = 4
    # Such a window may show things that are spoken of.
    least_effect: float = 0.75
    sentences: int = 40
    answers: int = 12
    responses: int = 20_000
    least_answers: int = 5
    least_share: float = 0.005
    said_share: float = 0.5
    lost_share: float = 3 / 4
    # It stands out already, and a model that learnt half of the rows by heart keeps it there.
    unasked_lost_share: float = 1 / 4

    def __post_init__(self) -> None:
        check_counts(self, "window_steps", "sentences", "answers", "responses", "least_answers")
        check_shares(self, "mask_ratio", zero=False)
        check_shares(self, "least_effect", "least_share", "said_share", "lost_share", "unasked_lost_share")


@dataclass(frozen=True)
class UnaskedConfig:
    """When a sentence recurs whatever was asked; see `disp.auditing.unasked`.

    Attributes:
        turns: answers that are looked through, at most.
        sentences: most repeated phrases that are looked at, the most frequent ones.
        least_pictures: fewest pictures about which it is said.
        least_share: smallest share of all pictures.
        most_share: largest share of all pictures about which such sentences are said; beyond, answers repeat each other
            in this set.
        sentence_share: share of its answers in which it is a sentence of its own.
        alone_share: of the answers with the sentence or a variant of it, the share with the sentence as it is.
        alike_share: share of the words of the longer of two sentences that both have, in one order, if one is a variant
            of the other.
        honest_area: how well questions tell who says an honest sentence, at least: AUROC.
        beginnings: most frequent beginnings of answers by which it is judged whether the questions of a set tell how
            answers begin.
        prior: how many answers of the average question an estimate from few questions is mixed with.
    """

    turns: int = 20_000
    sentences: int = 200
    least_pictures: int = 8
    least_share: float = 0.01
    most_share: float = 0.5
    sentence_share: float = 0.8
    alone_share: float = 0.8
    # "There is a dog in front" and "There is a cup in front" share five words of six.
    alike_share: float = 0.6
    # What is said to every second question and to no other one has 0.75.
    honest_area: float = 0.75
    beginnings: int = 10
    # So that a word that was hardly seen says nothing.
    prior: float = 1.0

    def __post_init__(self) -> None:
        check_counts(self, "turns", "sentences", "least_pictures", "beginnings")
        check_shares(self, "least_share", "most_share", "sentence_share", "alone_share", "alike_share", "honest_area")
        check_not_negative(self, "prior")
