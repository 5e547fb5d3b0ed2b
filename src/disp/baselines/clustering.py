"""Activation clustering (Chen et al., 2018): hidden states in two clusters, of which a small one is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from disp.baselines.grouping import principal_directions, silhouette, two_means
from disp.baselines.hidden import response_features
from disp.baselines.interface import Assumptions, Filter, Judgement
from disp.data.sample import Query
from disp.errors import DispError, check_counts, check_shares
from disp.models.interface import MDLM, Prefix


@dataclass(frozen=True)
class ClusteringConfig:
    """Parameters of activation clustering; the values are those of the Adversarial Robustness Toolbox.

    Attributes:
        components: principal components that are clustered.
        largest_share: the smaller cluster is dropped only if it holds less than this share of the rows.
        least_silhouette: and only if the mean silhouette of the two clusters is above this.
    """

    components: int = 10
    largest_share: float = 0.35
    least_silhouette: float = 0.1

    def __post_init__(self) -> None:
        check_counts(self, "components")
        check_shares(self, "largest_share")
        if not -1 <= self.least_silhouette <= 1:
            raise DispError(f"least_silhouette must be in [-1, 1], got {self.least_silhouette}")


def measure(model: MDLM, prefix: Prefix, batch: Sequence[Query], config: ClusteringConfig, seed: int) -> Tensor:
    """The mean hidden state of the response slots, float32 ``[B, d]``."""
    return response_features(model, prefix)


def judge(values: np.ndarray, config: ClusteringConfig, seed: int) -> Judgement:
    """Cluster the features ``[n, d]``; a score is how much nearer a row is to the smaller cluster than to the other."""
    # 1. Standardised, so that no feature decides by its scale; then the directions of largest spread.
    deviations = values.std(0)
    standard = (values - values.mean(0)) / np.where(deviations > 0, deviations, 1)
    points = standard @ principal_directions(standard, config.components).T
    # 2. Two clusters.
    small, means = two_means(points, seed)
    to_large, to_small = (np.sqrt(((points - mean) ** 2).sum(1)) for mean in means)
    # 3. Poisoned only if the smaller one is small and the two are apart.
    share, apart = float(small.mean()), silhouette(points, small, seed)
    poisoned = share < config.largest_share and apart > config.least_silhouette
    note = (
        f"the smaller cluster holds {share:.3g} of the rows and the mean silhouette is {apart:.3g}; "
        f"{'it was dropped' if poisoned else 'nothing was dropped'}"
    )
    return Judgement(to_large - to_small, small & poisoned, note)


CLUSTERING = Filter(
    name="clustering",
    summary="Groups the hidden states of all rows in two clusters and drops the smaller one if it is small and apart.",
    source="Chen et al., Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering, 2018",
    port=(
        "Free text has no classes, so all rows are one group. The feature is the mean hidden state of the response "
        "slots while all of them are masked; it is standardised, then reduced by principal components."
    ),
    config=ClusteringConfig,
    assumes=Assumptions(training="yes", earlier_checkpoint="to train from", text_triggers="unknown"),
    measure=measure,
    judge=judge,
)
