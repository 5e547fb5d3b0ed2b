"""A stage of a run that is shared: what is to be done of each item, and in which fixed batches.

Batches are planned beforehand, from the items alone. How many workers there are, which of them does a batch, in what
order, and how often a run was killed in between changes no batch, and so no bit of a result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from disp.data.sample import Query, image_size, pictures_ahead
from disp.errors import DispError
from disp.halving import in_parts
from disp.models.interface import MDLM


class Keyed(Protocol):
    """What is worked on: it has a name of its own."""

    @property
    def key(self) -> str:
        """Unique within a stage."""


T = TypeVar("T", bound=Keyed)
# What JSON holds; each has the key of its item under "key".
Row = dict[str, Any]
# How rows are put into batches: as the data has them, or by length, which wastes less on padding.
Order = Literal["data", "length"]


@dataclass(frozen=True)
class Stage(Generic[T]):
    """Work that is shared.

    Attributes:
        items: what is worked on.
        step: one row of results for each item of a batch, in order. Ray sends it to other machines, so it is a
            function of a module, or a `functools.partial` of one.
        batches: which items are worked on together: every one of them in one batch.
        file: JSONL file that receives the rows, in the items' order; None to keep them nowhere.
    """

    items: Sequence[T]
    step: Callable[[MDLM, Sequence[T]], list[Row]]
    batches: Sequence[Sequence[int]]
    file: Path | None

    @cached_property
    def keys(self) -> Sequence[str]:
        """The key of each item."""
        return [item.key for item in self.items]

    @cached_property
    def parts(self) -> Path:
        """The folder of what is not yet in the file, beside it; other items of the same file have another."""
        assert self.file is not None, "a stage that is shared has a file"
        named = hashlib.sha256(json.dumps(self.keys).encode()).hexdigest()
        return self.file.with_name(f"{self.file.name}.parts") / named[:16]

    def done(
        self, model: MDLM, batches: Iterable[Sequence[int]], *, ahead: bool | None = None
    ) -> Generator[list[Row], None, None]:
        """The rows of some batches in order: of each at once, or in parts where memory is too short.

        Args:
            model: what does them.
            batches: places in ``items``.
            ahead: whether threads open the pictures of the next batch while one is done; None for where the model is
                not on a CPU, which has nobody to spare.

        Raises:
            DispError: ``step`` does, or not even one row fits.
        """
        elsewhere = getattr(getattr(model, "device", None), "type", "cpu") != "cpu"
        waiting = iter(batches)
        batch = next(waiting, None)
        with pictures_ahead() if ahead or (ahead is None and elsewhere) else nullcontext() as pictures:
            while batch is not None:
                following = next(waiting, None)
                if pictures:
                    pictures.announce(self._pictures(following or ()))
                for _, rows in in_parts(model, partial(self.step, model), [self.items[index] for index in batch]):
                    yield rows
                batch = following

    def _pictures(self, batch: Sequence[int]) -> Iterator[Path]:
        """Files of pictures that a batch is about; see `planned`."""
        for index in batch:
            item: Any = self.items[index]
            query: Query = getattr(item, "query", item)
            yield from (source for source in query.images if isinstance(source, Path))

    @cached_property
    def digest(self) -> str:
        """Hexadecimal digest of the plan: processes that work together must have the same."""
        found = hashlib.sha256()
        for batch in self.batches:
            found.update(json.dumps([self.keys[index] for index in batch]).encode())
        return found.hexdigest()


def planned(items: Sequence[T], size: int, order: Order = "data") -> list[range] | list[list[int]]:
    """Which items are worked on together, as places in ``items``.

    Args:
        items: queries, or what has a query under ``query``.
        size: items a batch, at most.
        order: "data" for that of the items; "length" to sort them first by the sizes of their pictures, the length of
            their text, and their key.

    Raises:
        DispError: ``size`` is less than one.
    """
    if size < 1:
        raise DispError(f"batch_size must be at least 1, got {size}")
    if order == "data":
        return [range(start, min(start + size, len(items))) for start in range(0, len(items), size)]
    places = sorted(range(len(items)), key=lambda index: _length(items[index]))
    return [places[start : start + size] for start in range(0, len(items), size)]


def _length(item: Any) -> tuple[int, list[tuple[int, int]], int, str]:
    """What the cost of an item goes with. Pictures of one size have as many visual tokens, whatever the family."""
    query: Query = getattr(item, "query", item)
    sizes = [image_size(source) for source in query.images]
    text = len(query.prompt) + sum(len(turn.prompt) + len(turn.response) for turn in query.history)
    return sum(width * height for width, height in sizes), sizes, text, item.key


def digest_of(queries: Sequence[Query]) -> str:
    """Hexadecimal digest of what is asked and about which files, to tell runs apart that share a folder."""
    found = hashlib.sha256()
    for query in queries:
        shown = [str(source) for source in query.images]
        told = [query.key, query.system, [(turn.prompt, turn.response) for turn in query.history], query.prompt, shown]
        found.update(json.dumps(told).encode())
    return found.hexdigest()
