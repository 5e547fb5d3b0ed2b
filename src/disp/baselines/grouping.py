"""Two groups among numbers or points: a mixture of two normals, k-means, silhouettes; small, seeded, numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from disp.draws import generator
from disp.suspicion.threshold import two_means_threshold

# Of `two_normals`, as scikit-learn's GaussianMixture has them, which the published filters use.
LEAST_VARIANCE, TOLERANCE, MOST_STEPS = 1e-6, 1e-3, 100
# Of `two_means`, as scikit-learn's KMeans has them.
STARTS, MOST_ROUNDS = 10, 300
# Silhouettes of so many points stand for those of all, where there are more.
SILHOUETTES = 5_000


@dataclass(frozen=True)
class TwoNormals:
    """A mixture of two normal distributions, that of the lower mean first.

    Attributes:
        means: float64 ``[2]``.
        deviations: float64 ``[2]``, standard deviations.
        weights: float64 ``[2]``, which sum to 1.
        lower: float64 ``[n]``, the probability that each value is of the first.
    """

    means: np.ndarray
    deviations: np.ndarray
    weights: np.ndarray
    lower: np.ndarray


def two_normals(values: np.ndarray) -> TwoNormals:
    """Fit a mixture of two normal distributions by expectation-maximisation.

    It starts from the best split in two (see `disp.suspicion.threshold.two_means_threshold`), so nothing is drawn.

    Args:
        values: float64 ``[n]``, n at least 2.
    """
    if values.min() == values.max():
        return TwoNormals(
            np.full(2, values[0]), np.full(2, LEAST_VARIANCE**0.5), np.array([1.0, 0.0]), np.ones(len(values))
        )
    first = (values <= two_means_threshold(values)).astype(np.float64)
    member = np.stack((first, 1 - first))  # [2, n]
    before = -np.inf
    for _ in range(MOST_STEPS):
        # 1. The normals of these memberships.
        totals = member.sum(1) + 10 * np.finfo(np.float64).eps
        weights, means = totals / totals.sum(), member @ values / totals
        variances = (member * (values - means[:, None]) ** 2).sum(1) / totals + LEAST_VARIANCE
        # 2. The memberships of these normals.
        joint = (
            np.log(weights)[:, None]
            - (values - means[:, None]) ** 2 / (2 * variances[:, None])
            - np.log(2 * np.pi * variances)[:, None] / 2
        )
        each = np.logaddexp(joint[0], joint[1])
        member = np.exp(joint - each)
        if abs(each.mean() - before) < TOLERANCE:
            break
        before = each.mean()
    order = np.argsort(means, kind="stable")
    return TwoNormals(means[order], np.sqrt(variances)[order], weights[order], member[order[0]])


def principal_directions(points: np.ndarray, count: int) -> np.ndarray:
    """Unit vectors along which the points spread most.

    Args:
        points: float64 ``[n, d]``, centred.
        count: how many; there are at most n and d.

    Returns:
        float64 ``[count, d]``, that of the largest spread first; of each the largest entry is positive.
    """
    if len(points) < points.shape[1]:
        directions = np.linalg.svd(points, full_matrices=False)[2][:count]
    else:  # a long set is as cheap as a wide one
        directions = np.linalg.eigh(points.T @ points)[1].T[::-1][:count]
    return directions * np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(1)])[:, None]


def two_means(points: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means with two groups; the best of `STARTS` starts, each from two points drawn by k-means++.

    Args:
        points: float64 ``[n, d]``, n at least 2.
        seed: of the starts.

    Returns:
        bool ``[n]``, true in the smaller group (of equals the one without the first point), and float64 ``[2, d]``, the
        means of the larger and of the smaller group.
    """
    best, least = None, np.inf
    for start in range(STARTS):
        draw = generator(seed, "k-means", start)
        first = points[draw.integers(len(points))]
        away = ((points - first) ** 2).sum(1)
        second = points[draw.choice(len(points), p=away / away.sum())] if away.any() else first
        means = np.stack((first, second))
        for _ in range(MOST_ROUNDS):
            group = _distances(points, means).argmin(1)
            moved = np.stack([points[group == k].mean(0) if (group == k).any() else means[k] for k in (0, 1)])
            if np.array_equal(moved, means):
                break
            means = moved
        spread = _distances(points, means).min(1).sum()
        if spread < least:
            best, least = (group, means), spread
    assert best is not None
    group, means = best
    sizes = np.bincount(group, minlength=2)
    small = int(sizes.argmin()) if sizes[0] != sizes[1] else 1 - int(group[0])
    return group == small, means[[1 - small, small]]


def silhouette(points: np.ndarray, group: np.ndarray, seed: int) -> float:
    """The mean silhouette of two groups (Rousseeuw 1987), in [-1, 1]; 0 where one of them is empty.

    ``(b − a) / max(a, b)`` with a the mean distance of a point to the others of its group, b to those of the other
    group; 0 for a point that is alone in its group.

    Args:
        points: float64 ``[n, d]``.
        group: bool ``[n]``.
        seed: of the choice of points, where there are more than `SILHOUETTES`.
    """
    if group.all() or not group.any():
        return 0.0
    looked_at = np.arange(len(points))
    if len(points) > SILHOUETTES:
        looked_at = generator(seed, "silhouettes").permutation(len(points))[:SILHOUETTES]
    sizes = {side: int((group == side).sum()) for side in (False, True)}
    values = []
    for index in looked_at:
        apart = np.sqrt(((points - points[index]) ** 2).sum(1))
        own = bool(group[index])
        if sizes[own] == 1:
            values.append(0.0)
            continue
        inside = apart[group == own].sum() / (sizes[own] - 1)
        outside = apart[group != own].mean()
        values.append((outside - inside) / max(inside, outside) if max(inside, outside) > 0 else 0.0)
    return float(np.mean(values))


def top_share(scores: np.ndarray, share: float) -> np.ndarray:
    """The ``⌊share · n⌋`` highest scores, bool ``[n]``; of equals the earlier ones."""
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(-scores, kind="stable")[: int(share * len(scores) * (1 + 1e-12))]] = True
    return chosen


def _distances(points: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Squared distances, float64 ``[n, 2]``."""
    return np.stack([((points - mean) ** 2).sum(1) for mean in means], axis=1)
