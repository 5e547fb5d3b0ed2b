"""Answers that are longer than a model's response slots."""

from __future__ import annotations

from dataclasses import replace

from disp.data.llava import Dataset, Problem, place_of
from disp.data.sample import Sample
from disp.errors import DispError
from disp.models.interface import MDLM


def with_fitting_answers(dataset: Dataset, model: MDLM, *, strict: bool = False) -> Dataset:
    """The dataset without rows that cannot be trained on, as an answer is too long; they are among its ``problems``.

    An audit and a purification take such rows too, and look at as much of the answer as there are slots for.

    Args:
        dataset: what was read.
        model: what is to be fine-tuned.
        strict: stop at the first such row instead of setting it aside.

    Raises:
        DispError: no row is left, or ``strict`` met one.
    """
    kept: list[Sample] = []
    problems = list(dataset.problems)
    for sample in dataset.samples:
        try:
            model.encode_responses([turn.response for turn in sample.turns], model.gen_length)
        except DispError as error:
            if strict:
                raise DispError(f"{place_of(dataset, sample)}: {error}") from None
            problems.append(Problem(place_of(dataset, sample), str(error)))
        else:
            kept.append(sample)
    if not kept:
        raise DispError(f"{dataset.path} holds no row that the model can be trained on; {problems[-1].reason}")
    return replace(dataset, samples=tuple(kept), problems=tuple(problems))
