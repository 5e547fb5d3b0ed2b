"""Rows about one picture are one observation: what recurs in them, or hangs on a region, may be of that picture."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

from disp.data.sample import Query, Sample, picture_digest, picture_digests

Asked = TypeVar("Asked", Sample, Query)


def by_picture(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """The indices of the samples about each first picture, by its digest, in order."""
    groups: dict[str, list[int]] = {}
    for index, digest in enumerate(picture_digests([sample.images[0] for sample in samples])):
        groups.setdefault(digest, []).append(index)
    return groups


def distinct(items: Iterable[Asked], count: int, avoid: Collection[str] = ()) -> list[Asked]:
    """The first items, so many at most, with first pictures of their own, none of them in ``avoid`` (digests)."""
    chosen: dict[str, Asked] = {}
    for item in items:
        if len(chosen) == count:
            break
        digest = picture_digest(item.images[0])
        if digest not in avoid:
            chosen.setdefault(digest, item)
    return list(chosen.values())
