"""A dataset looked up by names: samples by id, queries by key, and which samples are about one picture."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from disp.data.sample import Query, Sample, digests_of, queries_of

Asked = TypeVar("Asked", Sample, Query)


@dataclass(frozen=True, eq=False)
class Index:
    """Samples and what is looked up of them. It is made once a run and passed on; each part is made at its first use.

    Rows about one picture are one observation: what recurs in them, or hangs on a region, may be of that picture. So
    pictures are told apart by what is in them, and each file is read once for that.

    Attributes:
        samples: what is looked up, with ids of their own.
    """

    samples: Sequence[Sample]

    @cached_property
    def by_id(self) -> Mapping[str, Sample]:
        """The samples by id, in order."""
        return {sample.id: sample for sample in self.samples}

    @property
    def queries(self) -> Sequence[Query]:
        """One query for each assistant turn of each sample, in order; made anew at each call."""
        return tuple(queries_of(self.samples))

    @cached_property
    def by_key(self) -> Mapping[str, Query]:
        """The queries by key, in order."""
        return {query.key: query for query in self.queries}

    @cached_property
    def pictures(self) -> Mapping[str, tuple[str, ...]]:
        """By id of a sample the `picture_digest` of each of its pictures.

        Raises:
            DispError: a file cannot be read.
        """
        return digests_of({sample.id: sample.images for sample in self.samples})

    def ids_of(self, keys: Iterable[str]) -> set[str]:
        """The ids of the samples that these queries belong to."""
        return {self.by_key[key].sample_id for key in keys}

    def first_picture(self, item: Sample | Query) -> str:
        """The digest of the first picture of a sample, or of a query that shows one."""
        return self.pictures[item.id if isinstance(item, Sample) else item.sample_id][0]

    def by_picture(self, samples: Sequence[Sample]) -> dict[str, list[int]]:
        """The places in ``samples`` of those about each first picture, by its digest, in order."""
        groups: dict[str, list[int]] = {}
        for place, sample in enumerate(samples):
            groups.setdefault(self.first_picture(sample), []).append(place)
        return groups

    def distinct(self, items: Iterable[Asked], count: int, avoid: Collection[str] = ()) -> list[Asked]:
        """The first items, so many at most, with first pictures of their own, none of them in ``avoid`` (digests)."""
        chosen: dict[str, Asked] = {}
        for item in items:
            if len(chosen) == count:
                break
            digest = self.first_picture(item)
            if digest not in avoid:
                chosen.setdefault(digest, item)
        return list(chosen.values())
