"""DiSP's own masking as a defence that answers, and the control that turns its ranking round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from disp.baselines.interface import OPTIONAL_TRAINING, Answering, Assumptions
from disp.data.sample import Query
from disp.errors import check_shares
from disp.models.interface import MDLM, Prefix
from disp.suspicion.config import PROBES, SaliencyConfig
from disp.suspicion.masking import mask_top
from disp.suspicion.saliency import saliency
from disp.suspicion.support import check_finite


@dataclass(frozen=True)
class SalientConfig:
    """Parameters of masking by saliency.

    Attributes:
        ratio: share of the visual tokens that is masked; as of `disp.baselines.random_mask.RandomMaskConfig`.
        probes: of the saliency score; see `disp.suspicion.config.PROBES`.
    """

    ratio: float = 0.45
    probes: int = PROBES["isotropic"]

    def __post_init__(self) -> None:
        check_shares(self, "ratio")
        SaliencyConfig(probes=self.probes)  # refuses what is out of range


def encode_without_most(model: MDLM, batch: Sequence[Query], config: SalientConfig, seed: int) -> Prefix:
    """The queries with their most salient visual tokens masked."""
    prefix = model.encode(batch)
    masked = mask_top(_scores(model, prefix, batch, config, seed), prefix.visual_mask, config.ratio)
    return prefix.with_masked(masked, model.mask_embedding)


def encode_without_least(model: MDLM, batch: Sequence[Query], config: SalientConfig, seed: int) -> Prefix:
    """The queries with their least salient visual tokens masked."""
    prefix = model.encode(batch)
    masked = mask_top(-_scores(model, prefix, batch, config, seed), prefix.visual_mask, config.ratio)
    return prefix.with_masked(masked, model.mask_embedding)


def _scores(model: MDLM, prefix: Prefix, batch: Sequence[Query], config: SalientConfig, seed: int) -> Tensor:
    keys = [query.key for query in batch]
    scores = saliency(model, prefix, keys, SaliencyConfig(probes=config.probes, seed=seed))
    check_finite(scores, keys)
    return scores


MOST_SALIENT = Answering(
    name="most-salient",
    summary="Masks the visual tokens that matter most to the answer, as DiSP does.",
    source="DiSP, arXiv 2602.22246",
    port="Nothing. `disp purify --mode all` does it to a dataset, `disp generate --guard` to questions of users.",
    config=SalientConfig,
    assumes=Assumptions(training=OPTIONAL_TRAINING, gradients="yes", global_triggers="unknown"),
    encode=encode_without_most,
)
LEAST_SALIENT = Answering(
    name="least-salient",
    summary="Masks the visual tokens that matter least to the answer: the ranking of DiSP turned round.",
    source="control",
    port="Masked tokens carry the mask embedding, as DiSP's do.",
    config=SalientConfig,
    assumes=Assumptions(training=OPTIONAL_TRAINING, gradients="yes", global_triggers="no"),
    encode=encode_without_least,
)
