"""A control: random visual tokens are masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from disp.baselines.interface import OPTIONAL_TRAINING, Answering, Assumptions
from disp.data.sample import Query
from disp.errors import check_shares
from disp.models.interface import MDLM, Prefix
from disp.suspicion.masking import mask_random


@dataclass(frozen=True)
class RandomMaskConfig:
    """Parameters of the control.

    Attributes:
        ratio: share of the visual tokens that is masked; give the share of the defence that it is compared with. The
            default is the share at which the paper of DiSP reports the cost on clean inputs.
    """

    ratio: float = 0.45

    def __post_init__(self) -> None:
        check_shares(self, "ratio")


def encode(model: MDLM, batch: Sequence[Query], config: RandomMaskConfig, seed: int) -> Prefix:
    """The queries with random visual tokens masked; the draw is keyed by the query."""
    prefix = model.encode(batch)
    masked = mask_random(prefix.visual_mask, config.ratio, [query.key for query in batch], seed)
    return prefix.with_masked(masked, model.mask_embedding)


RANDOM_MASK = Answering(
    name="random-mask",
    summary="Masks random visual tokens: what masking does that does not know where to look.",
    source="control",
    port="Masked tokens carry the mask embedding, as DiSP's do.",
    config=RandomMaskConfig,
    assumes=Assumptions(training=OPTIONAL_TRAINING, global_triggers="no"),
    encode=encode,
)
