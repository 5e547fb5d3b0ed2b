"""How much two halves of some pictures agree in what other pictures have not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from disp.auditing.finder_config import PatternsConfig
from disp.auditing.finders.shelf import Arrays, in_parts


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over some pictures.

    Attributes:
        count: how many these are.
        edges: float32 ``[3, D]``, of their edges.
        colours: float32 ``[3]``, of the colours of their grounds.
        products: float32 ``[3, D]``, of their edges, each times the ground's colour in that channel.
        squares: float32 ``[3]``, of the squares of the colours.
    """

    count: int
    edges: np.ndarray
    colours: np.ndarray
    products: np.ndarray
    squares: np.ndarray

    @classmethod
    def over(cls, edges: Arrays, colours: np.ndarray, rows: np.ndarray) -> Sums:
        """Over some rows of pictures with these edges, float32 ``[N, 3, D]``, and colours, ``[N, 3]``."""
        found = products = np.zeros(edges.shape[1:], np.float32)
        for part in in_parts(edges, rows):
            # What was summed so far comes first, so that the bits do not depend on the parts.
            own = np.concatenate((found[None], edges[part]))
            found = own.sum(0)
            own[0] = products
            weights = np.concatenate((np.ones((1, 3), np.float32), colours[part]))
            products = np.einsum("nc,ncd->cd", weights, own)
        return cls(len(rows), found, colours[rows].sum(0), products, (colours[rows] ** 2).sum(0))

    def without(self, taken: Sums) -> Sums:
        """The sums without some of the pictures."""
        return Sums(
            self.count - taken.count,
            self.edges - taken.edges,
            self.colours - taken.colours,
            self.products - taken.products,
            self.squares - taken.squares,
        )

    def explained(self, apart: np.ndarray, steadied: float) -> np.ndarray:
        """How edges differ on grounds that are so far (``[3]``) from these, float32 ``[3, D]``.

        Grounds that differ by less than ``steadied`` grey levels hardly tell: edges are then taken to be the same.
        """
        mean = self.colours / max(1, self.count)
        within = self.products - mean[:, None] * self.edges
        spread = self.squares - mean * self.colours + max(1, self.count) * steadied**2
        return np.asarray((apart / spread)[:, None] * within)


@dataclass(frozen=True, eq=False)
class Compared:
    """All pictures, and sums over those in question.

    Attributes:
        edges: float32 ``[N, 3, D]``, of every channel; in memory or on a shelf.
        colours: float32 ``[N, 3]``, of the pictures' grounds, about the mean of those in question.
        chosen: bool ``[N]``, which of all rows are in the first half.
        halves: sums over the first half and over the second.
        config: how alike pictures must be.
    """

    edges: Arrays
    colours: np.ndarray
    chosen: np.ndarray
    halves: tuple[Sums, Sums]
    config: PatternsConfig

    def agreement(self, members: np.ndarray) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
        """How much the halves of some pictures are alike in what others have not.

        Where things often lie, the mean of many pictures shows less of the ground. So what pictures with a yellow
        ground have in common and others have not is their layout, in yellow. It is taken off, as in an analysis of
        covariance: what an edge gains among the others with every grey level of the ground, times how far the grounds
        of both are apart. This takes no pattern off, for the others do not have it. Each half measures the gain anew,
        for an error that both halves had would be alike.

        Args:
            members: rows of those that are looked at.

        Returns:
            A correlation in [-1, 1], and what the members of either half have in common, float32 ``[3 * D]``.
        """
        others = sum(half.count for half in self.halves) - len(members)
        rows = [members[self.chosen[members] == which] for which in (True, False)]
        own = [Sums.over(self.edges, self.colours, each) for each in rows]
        means = [each.edges / max(1, each.count) for each in own]
        left = [half.without(each) for half, each in zip(self.halves, own, strict=True)]
        rest = (left[0].edges + left[1].edges) / others
        ground = (left[0].colours + left[1].colours) / others
        # It must not be that the others have something in common that these have not.
        theirs = float((means[0] * means[1]).sum()) > float((rest * rest).sum())
        first, second = (
            (mean - rest - half.explained(self.colours[each].mean(0) - ground, self.config.colour_spread)).ravel()
            if len(each)
            else np.zeros(rest.size, np.float32)
            for half, mean, each in zip(left, means, rows, strict=True)
        )
        norms = float(np.linalg.norm(first) * np.linalg.norm(second))
        return float(first @ second) / max(norms, 1e-12) if theirs else 0.0, (first, second)


def compared(
    edges: Arrays, colours: np.ndarray, half: np.ndarray, everything: np.ndarray, config: PatternsConfig
) -> Compared:
    """Pictures to compare.

    Args:
        edges: float32 ``[N, 3, D]``, of every channel.
        colours: float32 ``[N, 3]``, of the pictures' grounds.
        half: bool ``[N]``, the first half.
        everything: rows of all pictures that are in question.
        config: how alike they must be.
    """
    colours = colours - colours[everything].mean(0)
    first, second = (everything[half[everything] == which] for which in (True, False))
    halves = Sums.over(edges, colours, first), Sums.over(edges, colours, second)
    return Compared(edges, colours, half, halves, config)
