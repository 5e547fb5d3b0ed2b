"""A control: the visual tokens that matter least are masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from disp.baselines.interface import OPTIONAL_TRAINING, Answering, Assumptions, check_share
from disp.data.sample import Query
from disp.models.interface import MDLM, Prefix
from disp.suspicion.config import PROBES, SaliencyConfig
from disp.suspicion.masking import mask_top
from disp.suspicion.saliency import saliency
from disp.suspicion.scoring import check_finite


@dataclass(frozen=True)
class LeastSalientConfig:
    """Parameters of the control.

    Attributes:
        ratio: share of the visual tokens that is masked; as of `disp.baselines.random_mask.RandomMaskConfig`.
        probes: of the saliency score; see `disp.suspicion.saliency.PROBES`.
    """

    ratio: float = 0.45
    probes: int = PROBES["isotropic"]

    def __post_init__(self) -> None:
        check_share("ratio", self.ratio)
        SaliencyConfig(probes=self.probes)  # refuses what is out of range


def encode(model: MDLM, batch: Sequence[Query], config: LeastSalientConfig, seed: int) -> Prefix:
    """The queries with their least salient visual tokens masked."""
    prefix = model.encode(batch)
    keys = [query.key for query in batch]
    scores = saliency(model, prefix, keys, SaliencyConfig(probes=config.probes, seed=seed))
    check_finite(scores, keys)
    return prefix.with_masked(mask_top(-scores, prefix.visual_mask, config.ratio), model.mask_embedding)


LEAST_SALIENT = Answering(
    name="least-salient",
    summary="Masks the visual tokens that matter least to the answer: the ranking of DiSP turned round.",
    source="control",
    port="Masked tokens carry the mask embedding, as DiSP's do.",
    config=LeastSalientConfig,
    assumes=Assumptions(training=OPTIONAL_TRAINING, gradients="yes", global_triggers="no"),
    encode=encode,
)
