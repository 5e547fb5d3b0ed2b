"""A control: every visual token is masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from disp.baselines.interface import OPTIONAL_TRAINING, Answering, Assumptions
from disp.data.sample import Query
from disp.models.interface import MDLM, Prefix


@dataclass(frozen=True)
class MaskAllConfig:
    """It has no parameters."""


def encode(model: MDLM, batch: Sequence[Query], config: MaskAllConfig, seed: int) -> Prefix:
    """The queries with every visual token masked."""
    prefix = model.encode(batch)
    return prefix.with_masked(prefix.visual_mask, model.mask_embedding)


MASK_ALL = Answering(
    name="mask-all",
    summary="Masks every visual token: how much of an answer the model guesses without the picture.",
    source="control",
    port="Masked tokens carry the mask embedding, as DiSP's do.",
    config=MaskAllConfig,
    assumes=Assumptions(training=OPTIONAL_TRAINING, global_triggers="yes, and the picture is lost"),
    encode=encode,
)
