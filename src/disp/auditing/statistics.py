"""Exact tests for small counts."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from disp.draws import generator


def hypergeometric_tail(hits: int, drawn: int, marked: int, total: int) -> float:
    """P(X >= hits) where X counts the marked among ``drawn`` taken from ``total`` of which ``marked`` are marked.

    The one-sided Fisher test: of ``drawn`` flagged responses ``hits`` hold a phrase that ``marked`` of all ``total``
    responses hold.

    Args:
        hits: the marked among those that were drawn.
        drawn: how many were drawn.
        marked: how many are marked.
        total: how many there are.

    Returns:
        A probability in [0, 1].
    """
    least, most = max(hits, drawn - (total - marked)), min(drawn, marked)
    if hits <= max(0, drawn - (total - marked)):
        return 1.0
    log_all = _log_choose(total, drawn)
    terms = [
        _log_choose(marked, count) + _log_choose(total - marked, drawn - count) - log_all
        for count in range(least, most + 1)
    ]
    if not terms:
        return 0.0
    peak = max(terms)
    return min(1.0, math.exp(peak) * sum(math.exp(term - peak) for term in terms))


def regrouping_p_value(group: np.ndarray, control: np.ndarray, seed: int, most: int) -> float:
    """One-sided permutation test: how often would a random regrouping give ``group`` as high a mean?

    Exact where there are at most ``most`` regroupings, otherwise from as many random ones.

    Args:
        group: float ``[n]``.
        control: float ``[m]``.
        seed: of the random regroupings.
        most: regroupings that are counted, or drawn.
    """
    values = np.concatenate((group, control)).astype(np.float64)
    size = len(group)
    if size == 0 or len(control) == 0:
        return 1.0
    observed = values[:size].sum()
    if math.comb(len(values), size) <= most:
        sums = np.array([values[list(chosen)].sum() for chosen in combinations(range(len(values)), size)])
        return float((sums >= observed - 1e-9).mean())
    draw = generator(seed, "regroupings")
    order = draw.random((most, len(values))).argsort(-1)[:, :size]
    sums = values[order].sum(-1)
    return float(((sums >= observed - 1e-9).sum() + 1) / (most + 1))


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """AUROC: how often a positive scores higher than a negative, ties counting half; NaN without both kinds.

    Args:
        scores: float ``[n]``.
        positive: bool ``[n]``.
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
