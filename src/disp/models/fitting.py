"""Answers that are longer than a model's response slots."""

from __future__ import annotations

from disp.data.dataset import Dataset, set_aside
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
    faults = (_fault(sample, model) for sample in dataset.samples)
    return set_aside(dataset, faults, strict=strict, needed="that the model can be trained on")


def _fault(sample: Sample, model: MDLM) -> str | None:
    try:
        model.encode_responses([turn.response for turn in sample.turns], model.gen_length)
    except DispError as error:
        return str(error)
    return None
