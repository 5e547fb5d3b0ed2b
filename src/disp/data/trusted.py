"""Answers that are trusted, from a second dataset: taken for a row whose pictures and questions are the same there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from disp.data.dataset import Dataset, Problem
from disp.data.index import Index
from disp.data.sample import IMAGE_PLACEHOLDER, Sample
from disp.data.stored import identity
from disp.errors import DispError
from disp.files import sha256
from disp.words import shortened


@dataclass(frozen=True, eq=False)
class Trusted:
    """A dataset whose answers are trusted.

    Attributes:
        dataset: the set.
        index: of its samples.
    """

    dataset: Dataset
    index: Index

    def identity(self) -> dict[str, str]:
        """What a run depends on."""
        return identity(self.dataset, self.index)


def trusted_answers(dataset: Dataset, given: Dataset) -> Trusted:
    """A second dataset as the source of answers for a first one.

    Args:
        dataset: the one with trusted answers.
        given: the one whose rows they are for.

    Raises:
        DispError: they are one file, or have no id in common.
    """
    if _same_file(dataset.path, given.path):
        raise DispError(f"{dataset.path} is the dataset itself; --trusted takes a second one, with answers to trust")
    index = Index(dataset.samples)
    if not any(sample.id in index.by_id for sample in given.samples):
        first, other = shortened(given.samples[0].id), shortened(dataset.samples[0].id)
        raise DispError(
            f"{dataset.path} has no row with an id of {given.path} (such as {first!r}; there {other!r}); rows are "
            "matched by id"
        )
    return Trusted(dataset, index)


def answers_from(
    trusted: Trusted, index: Index, wanted: Collection[str]
) -> tuple[Mapping[str, tuple[str, ...]], tuple[Problem, ...]]:
    """The trusted answers to some rows, one a turn, by id; and the rows that have none, with the reason.

    Args:
        trusted: where they are taken from.
        index: of the samples that they are for.
        wanted: ids of those.
    """
    answers: dict[str, tuple[str, ...]] = {}
    missing: list[Problem] = []
    for key, sample in index.by_id.items():
        if key not in wanted:
            continue
        other = trusted.index.by_id.get(key)
        if other is None:
            fault = "no row has this id"
        elif trusted.index.pictures[key] != index.pictures[key]:
            fault = "the row with this id has other pictures"
        elif _questions(other) != _questions(sample):
            fault = "the row with this id asks something else"
        elif not all(turn.response.strip() for turn in other.turns):
            fault = "the row with this id has an empty answer"
        else:
            answers[key] = tuple(turn.response for turn in other.turns)
            continue
        missing.append(Problem(f"sample {shortened(key)!r}", f"{fault} in {trusted.dataset.path}"))
    return answers, tuple(missing)


def _questions(sample: Sample) -> list[str]:
    """What is asked, turn by turn. Where pictures stand in it is a matter of the format; which they are, of digests."""
    return [" ".join(turn.prompt.replace(IMAGE_PLACEHOLDER, " ").split()) for turn in sample.turns]


def _same_file(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve() or (one.is_file() and other.is_file() and sha256(one) == sha256(other))
