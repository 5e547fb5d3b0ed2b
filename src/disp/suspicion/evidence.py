"""What was found about every training answer, kept by the key of its turn, and the masks that follow from it."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from disp.data.sample import Query, Sample
from disp.files import append_jsonl, named_if_unwritable, read_finished_jsonl
from disp.suspicion.masking import Rounding, mask_top

# Image, tile, row and column of each visual token.
Locations = tuple[tuple[int, int, int, int], ...]


class Scores(Sequence[float]):
    """Scores of five significant digits, as ``scores.jsonl`` has them, in four bytes each.

    A float32 holds seven digits, so that rounding it gives the very numbers back.
    """

    __slots__ = ()

    def values(self) -> array[float]:
        """All of them, not rounded."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[float]:
        return map(rounded, self.values())

    def __getitem__(self, index: Any) -> Any:
        found = self.values()[index]
        return [*map(rounded, found)] if isinstance(index, slice) else rounded(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


class InMemory(Scores):
    """Scores that are held; ``values`` have no more digits than they may."""

    __slots__ = ("_values",)

    def __init__(self, values: Iterable[float]):
        self._values = array("f", values)

    def values(self) -> array[float]:
        return self._values

    def __len__(self) -> int:
        return len(self._values)


class OnDisk(Scores):
    """Scores that are read when they are asked for; sent to another process, they are held there."""

    __slots__ = ("_count", "_file", "_start")

    def __init__(self, file: IO[bytes], values: array[float]):
        """``values`` are appended to ``file``."""
        self._file, self._start, self._count = file, file.seek(0, os.SEEK_END), len(values)
        values.tofile(file)

    def values(self) -> array[float]:
        self._file.seek(self._start)
        found = array("f")
        found.fromfile(self._file, self._count)
        return found

    def __len__(self) -> int:
        return self._count

    def __reduce__(self) -> tuple[type[InMemory], tuple[array[float]]]:
        return InMemory, (self.values(),)


def rounded(score: float) -> float:
    """A score as it is kept: its order among others needs no more digits."""
    return float(f"{score:.5g}")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found about one assistant turn.

    Attributes:
        key: the query's key.
        saliency: one score a visual token, in the order of the tokens; where separators are scored, one of each of
            them too.
        locations: image, tile, row and column of each visual token, -1 of separators.
        suspicion: in nats, see `disp.suspicion.support.suspicion_of`; None where it was not measured.
        hangs_on: the visual tokens without which another answer wins: the best of the candidates that were tried, or
            what an audit found to do more, such as the tokens that show a copied piece.
    """

    key: str
    saliency: Sequence[float]
    locations: Locations
    suspicion: float | None = None
    hangs_on: tuple[int, ...] = ()

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Evidence:
        """From a line of ``scores.jsonl``."""
        locations = tuple((image, tile, line, column) for image, tile, line, column in row["locations"])
        return cls(row["key"], row["saliency"], locations, row["suspicion"], tuple(row["best_candidate"]))

    def to_row(self) -> dict[str, Any]:
        """As a line of ``scores.jsonl``."""
        return {
            "key": self.key,
            "saliency": list(self.saliency),
            "locations": self.locations,
            "suspicion": self.suspicion,
            "best_candidate": self.hangs_on,
        }


class EvidenceStore:
    """Evidence by key, held in little memory and appended to a file.

    Attributes:
        found: all evidence, that of a run that was stopped before included.
    """

    def __init__(self, file: Path | None, folder: Path | None = None):
        """Nothing is found yet, or what a file has.

        Args:
            file: a JSONL file to go on with; None to keep nothing.
            folder: where scores lie meanwhile, in a file without a name; in memory if None.

        Raises:
            DispError: nothing can be written there.
        """
        self.found: dict[str, Evidence] = {}
        self._file, self._folder, self._scores = file, folder, None
        if folder:
            with named_if_unwritable(folder):
                folder.mkdir(parents=True, exist_ok=True)
                self._scores = tempfile.TemporaryFile(dir=folder)
        # Pictures of one size have their tokens at the same places, which are kept once: they take most of the memory.
        self._layouts: dict[Locations, Locations] = {}
        self._tokens: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._keep(Evidence.from_row(row) for row in (read_finished_jsonl(file) if file else ()))

    def add(self, new: Sequence[Evidence]) -> None:
        """Keep evidence, and append it to the file."""
        self._keep(new)
        if self._file:
            append_jsonl(self._file, [each.to_row() for each in new])

    def _keep(self, new: Iterable[Evidence]) -> None:
        for each in new:
            locations = self._layouts.setdefault(each.locations, each.locations)
            hangs_on = self._tokens.setdefault(each.hangs_on, each.hangs_on)
            saliency = self._kept(each.saliency)
            self.found[each.key] = replace(each, saliency=saliency, locations=locations, hangs_on=hangs_on)

    def _kept(self, saliency: Sequence[float]) -> Sequence[float]:
        held = InMemory(saliency)
        if list(held) != list(saliency):  # with more digits
            return array("d", saliency)
        if self._folder is None or self._scores is None:
            return held
        with named_if_unwritable(self._folder):
            return OnDisk(self._scores, held.values())


def most_suspicious(sample: Sample, evidence: Mapping[str, Evidence]) -> Evidence:
    """The evidence of a sample's most suspicious turn: the trigger is in the image, which the turns share.

    Of equals the first that has visual tokens, if one has.
    """
    return max((evidence[key] for key in sample.keys), key=lambda each: (each.suspicion or 0.0, len(each.saliency) > 0))


def suspicious_query(sample: Sample, evidence: Mapping[str, Evidence]) -> Query:
    """The query whose answer is the sample's most suspicious one."""
    found = most_suspicious(sample, evidence)
    return next(query for query in sample.queries if query.key == found.key)


def sample_suspicion(sample: Sample, evidence: Mapping[str, Evidence]) -> float:
    """The highest suspicion among a sample's turns."""
    return most_suspicious(sample, evidence).suspicion or 0.0


def saliency_of(batch: Sequence[Query], visual_mask: Tensor, evidence: Mapping[str, Evidence]) -> Tensor:
    """The saliency that was found for a batch, where its tokens stand now.

    Args:
        batch: B queries.
        visual_mask: bool ``[B, P]``.
        evidence: by key.

    Returns:
        float32 ``[B, P]`` on the mask's device, 0 at other positions.
    """
    scores = torch.zeros(visual_mask.shape)
    for row, query in enumerate(batch):
        scores[row, visual_mask[row].cpu()] = torch.tensor(list(evidence[query.key].saliency), dtype=torch.float32)
    return scores.to(visual_mask.device)


def salient_masks(
    batch: Sequence[Query],
    visual_mask: Tensor,
    evidence: Mapping[str, Evidence],
    ratio: float,
    *,
    rounding: Rounding = "up",
) -> Tensor:
    """The most salient tokens, this share of each row's, bool ``[B, P]``.

    Args:
        batch: B queries.
        visual_mask: bool ``[B, P]``, what was scored.
        evidence: by key.
        ratio: share of them.
        rounding: see `disp.suspicion.masking.mask_top`.
    """
    return mask_top(saliency_of(batch, visual_mask, evidence), visual_mask, ratio, rounding=rounding)


def evidence_masks(visual_mask: Tensor, found: Sequence[Evidence]) -> Tensor:
    """The tokens that each row's evidence hangs on, bool ``[B, P]``; ``visual_mask`` bool ``[B, P]``."""
    masked = torch.zeros_like(visual_mask)
    for row, each in enumerate(found):
        positions = visual_mask[row].nonzero()[:, 0]
        masked[row, positions[list(each.hangs_on)]] = True
    return masked
