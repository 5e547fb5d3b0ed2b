"""Rows about one picture are one observation: what recurs in them, or hangs on a region, may be of that picture."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from disp.data.sample import ImageSource, Query, Sample

Asked = TypeVar("Asked", Sample, Query)


def picture_digest(source: ImageSource) -> bytes:
    """The same for pictures whose files, or whose pixels if they are in memory, are the same."""
    if isinstance(source, Path):
        content = source.read_bytes()
    else:
        content = f"{source.mode} {source.size}".encode() + source.tobytes()
    return blake2b(content, digest_size=16).digest()


def by_picture(samples: Sequence[Sample]) -> dict[bytes, list[int]]:
    """The indices of the samples about each first picture, by its digest, in order."""
    digests: dict[Path, bytes] = {}
    groups: dict[bytes, list[int]] = {}
    for index, sample in enumerate(samples):
        source = sample.images[0]
        if isinstance(source, Path):
            digest = digests[source] if source in digests else digests.setdefault(source, picture_digest(source))
        else:
            digest = picture_digest(source)
        groups.setdefault(digest, []).append(index)
    return groups


def distinct(items: Iterable[Asked], count: int, avoid: Collection[bytes] = ()) -> list[Asked]:
    """The first items, so many at most, with first pictures of their own, none of them in ``avoid`` (digests)."""
    chosen: dict[bytes, Asked] = {}
    for item in items:
        if len(chosen) == count:
            break
        digest = picture_digest(item.images[0])
        if digest not in avoid:
            chosen.setdefault(digest, item)
    return list(chosen.values())
