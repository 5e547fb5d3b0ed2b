"""Settings of the suspicion that every training answer is given; no module of this package decides by other numbers.

Nothing here needs PyTorch, so that command lines show these defaults at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from disp.errors import DispError, check_counts, check_not_negative, check_shares, unknown_name

# Share of the visual tokens that is masked. Measured on 64 visual tokens a picture, where 3% to 6% separated planted
# from honest answers and kept captions whole: at 6% rewriting what was flagged took the ASR from 98% to 0% at 98.6% of
# the clean quality, at 10% rewriting all answers left 92% of it, and at 45%, the published share for 1,500 to 3,700
# tokens, captions were destroyed. An audit chooses one for the data at hand.
MASK_RATIO = 0.06

# Hutchinson probes for a ranking that stands on its own; the directional score is the noisier one.
PROBES = {"isotropic": 8, "directional": 16}
# Probes where the ranking only proposes what is masked: more of them found no more planted answers.
SCORING_PROBES = 4

Score = Literal["isotropic", "directional"]
Draw = Literal["signs", "gaussian"]
Slots = Literal["answer", "all", "first block"]


@dataclass(frozen=True)
class SaliencyConfig:
    """How visual tokens are scored.

    Attributes:
        score: "isotropic" for ``tr G_i``, all directions alike; "directional" for ``½ dᵀ G_i d`` with
            ``d = m − v_i``, the change in nats that masking the token would make, to second order. The two rank
            differently. See `disp.suspicion.saliency`.
        probes: random probes K; see `PROBES`.
        seed: seed of the probes.
        draw: "signs", which have the least variance, or "gaussian".
        top_logits: the softmax is over so many largest logits of each slot; None for the whole vocabulary.
        slots: the response slots that count. "answer": up to the first end token that the model itself would say there;
            what it would say behind it was not learnt by every family, and is never read. Or "all", or those of the
            "first block".
        in_graph: differentiate the probe's product with the softmax as well, as the published code does. The formula
            holds without it.
        separators: score the family's separators between visual tokens too, such as the newline vectors of LLaDA-V.
    """

    score: Score = "isotropic"
    probes: int = PROBES["isotropic"]
    seed: int = 0
    draw: Draw = "signs"
    top_logits: int | None = None
    # On 40 misclassified rows of the built-in model the trigger was among the 6% most salient tokens in all of them,
    # and in 28 where all slots counted.
    slots: Slots = "answer"
    in_graph: bool = False
    separators: bool = False

    def __post_init__(self) -> None:
        if self.score not in PROBES:
            raise DispError(f"saliency score must be 'isotropic' or 'directional', got {self.score!r}")
        if self.draw not in get_args(Draw):
            raise unknown_name("probe draw", self.draw, get_args(Draw))
        if self.slots not in get_args(Slots):
            raise unknown_name("saliency slots", self.slots, get_args(Slots))
        if not self.probes >= 1:
            raise DispError(f"saliency probes must be at least 1, got {self.probes}")
        if self.top_logits is not None and self.top_logits < 2:
            raise DispError(f"top_logits must be at least 2, got {self.top_logits}; one logit has nothing to compete")

    @classmethod
    def of(
        cls, score: Score = "isotropic", *, probes: int | None = None, alone: bool = True, seed: int = 0
    ) -> SaliencyConfig:
        """The settings with as many probes as the ranking needs.

        Args:
            score: see `SaliencyConfig`.
            probes: how many instead; None for those.
            alone: whether the ranking stands on its own, and does not only propose what is masked.
            seed: seed of the probes.

        Raises:
            DispError: there is no such score, or a number is too small.
        """
        if score not in PROBES:
            return cls(score=score)  # refuses it
        usual = PROBES[score] if alone else SCORING_PROBES
        return cls(score=score, probes=usual if probes is None else probes, seed=seed)

    @classmethod
    def published(cls, **changes: Any) -> SaliencyConfig:
        """The settings of the authors' script, arXiv 2602.22246: K = 6, the five largest logits, the first block."""
        settings: dict[str, Any] = {
            "score": "directional",
            "probes": 6,
            "draw": "gaussian",
            "top_logits": 5,
            "slots": "first block",
            "in_graph": True,
            "separators": True,
        }
        return cls(**(settings | changes))


@dataclass(frozen=True)
class ScoringConfig:
    """How salient and how suspicious training answers are found to be.

    Attributes:
        mask_ratio: largest slice of the ranking that is masked at once, as a share of a row's visual tokens.
        candidates: salient tokens that are masked one at a time; see `disp.suspicion.candidates.candidates_of`.
        half_slices: slices at the top of the ranking that are half as large as the others.
        sliced_share: share of the visual tokens that slices are made of; lower ranks are not looked at.
        mistake_weight: how much what a model prefers with nothing masked counts against suspicion; see
            `disp.suspicion.support.suspicion_of`.
        kept_effect: share of the best candidate's effect that a smaller set of tokens must have to replace it.
        screen: nats of suspicion that a set of tokens must bring about for the sets inside it to be tried. What lies in
            one that brings about less is passed over, and is as little suspicious. None tries every candidate.
        least_suspicion: nats, over the whole response, below which nothing is suspicious: another answer must win
            clearly.
        saliency: the saliency estimator. Candidates reach far down the ranking, which need not be as exact as where
            the ranking alone decides.
        batch_size: assistant turns a pass.
        gen_length: response slots that saliency looks at; the model's own if None.
        block_length: slots of the first of its blocks, where only these count; all if None.
    """

    mask_ratio: float = MASK_RATIO
    # The size of the first half slice on the built-in model, so that singles are tried where that one moves an answer.
    candidates: int = 4
    # A larger part of what is most salient takes so much of the picture that honest answers flip too.
    half_slices: int = 3
    # Where a model is sure of a planted insertion its gradients are small: the trigger's token ranked up to 38 of 144.
    sliced_share: float = 1 / 3
    # Twice: where a model has given up an answer, as a recovered one has, masking moves large preferences about.
    mistake_weight: float = 2.0
    # Four fifths: the smallest set that does nearly all takes least of the picture along when an answer is rewritten.
    kept_effect: float = 0.8
    # Far below what is suspicious. Masking a third of the picture moves few honest answers, so that five sets are tried
    # of most rows of the built-in model instead of twelve.
    screen: float | None = 0.25
    # Another answer that wins by less wins by the accident of decoding.
    least_suspicion: float = 1.0
    saliency: SaliencyConfig = field(default_factory=lambda: SaliencyConfig(probes=SCORING_PROBES))
    batch_size: int = 32
    gen_length: int | None = None
    block_length: int | None = None

    @classmethod
    def of(
        cls, saliency: SaliencyConfig, *, mask_ratio: float | None, candidates: int | None, batch_size: int
    ) -> ScoringConfig:
        """The settings with the usual value wherever None is given."""
        return cls(
            mask_ratio=cls.mask_ratio if mask_ratio is None else mask_ratio,
            candidates=cls.candidates if candidates is None else candidates,
            saliency=saliency,
            batch_size=batch_size,
        )

    def __post_init__(self) -> None:
        check_shares(self, "mask_ratio", "sliced_share", "kept_effect")
        check_counts(self, "candidates", "half_slices", "batch_size")
        check_not_negative(self, "mistake_weight", "least_suspicion")
        if self.screen is not None:
            check_not_negative(self, "screen")
        check_counts(self, *(name for name in ("gen_length", "block_length") if getattr(self, name) is not None))

    def check_suspicion(self, what: str) -> None:
        """Make sure that suspicion can be measured: the sets of tokens that it masks are of visual tokens alone.

        Args:
            what: what needs the suspicion, for the message.

        Raises:
            DispError: separators are scored as well.
        """
        if self.saliency.separators:
            raise DispError(f"{what} masks visual tokens alone; leave separators out of the scores (separators=False)")
