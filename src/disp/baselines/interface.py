"""What a rival defence is: two kinds behind one table, and what each of them assumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from disp.data.dataset import Dataset
from disp.data.sample import Query
from disp.models.interface import MDLM, Prefix

# Of a defence that answers: it is whole without training; its answers to the fine-tuning set can be trained on.
OPTIONAL_TRAINING = "no; or on its answers"


@dataclass(frozen=True)
class Assumptions:
    """What a defence needs and what it is said to see: "yes", "no", or the condition in a few words.

    Attributes:
        clean_data: samples that are known to be clean.
        earlier_checkpoint: a checkpoint that is trusted, such as the model before fine-tuning.
        training: the model is fine-tuned again after it.
        attention: attention weights of the language model.
        gradients: gradients through the language model.
        global_triggers: it is expected to work on triggers that cover the whole picture.
        text_triggers: it is expected to work on triggers in the prompt.
    """

    clean_data: str = "no"
    earlier_checkpoint: str = "no"
    training: str = "no"
    attention: str = "no"
    gradients: str = "no"
    global_triggers: str = "unknown"
    text_triggers: str = "no"


@dataclass(frozen=True, kw_only=True)
class RivalDefence:
    """A rival defence.

    Attributes:
        name: as on the command line.
        summary: what it does, one sentence.
        source: who published it; "control" for what only shows what a defence must beat.
        port: what differs here from the publication, and why.
        config: frozen dataclass of its parameters, all with defaults.
        assumes: see `Assumptions`.
        check: takes parameters and the dataset, and raises `DispError` where it cannot do with them; called before any
            work.
    """

    name: str
    summary: str
    source: str
    port: str
    config: type
    assumes: Assumptions
    check: Callable[[Any, Dataset], object] = lambda config, dataset: None


@dataclass(frozen=True)
class Judgement:
    """What a filter decides about samples.

    Attributes:
        scores: float ``[n]``, higher for what is more suspicious.
        dropped: bool ``[n]``.
        note: how it was decided, one sentence.
    """

    scores: np.ndarray
    dropped: np.ndarray
    note: str


@dataclass(frozen=True, kw_only=True)
class Filter(RivalDefence):
    """A defence that takes rows out of the fine-tuning set: it measures turns batch by batch, then judges all samples.

    What is measured of a sample is the mean over its turns.

    Attributes:
        measure: model, encoded batch, its queries, config and seed to float ``[B, F]``; rows do not influence each
            other.
        judge: float64 ``[n, F]``, a row a sample, config and seed to a `Judgement`; n is at least 2.
        pictures_only: turns without a visual token are not measured, and samples without any stay.
    """

    measure: Callable[[MDLM, Prefix, Sequence[Query], Any, int], Tensor]
    judge: Callable[[np.ndarray, Any, int], Judgement]
    pictures_only: bool = True


@dataclass(frozen=True, kw_only=True)
class Answering(RivalDefence):
    """A defence that changes what the model sees of the pictures when it answers.

    At test time it answers users. On a fine-tuning set it answers the set's own prompts, and the new answers take the
    place of the old ones.

    Attributes:
        encode: model, queries, config and seed to the prefix that is answered; rows do not influence each other.
    """

    encode: Callable[[MDLM, Sequence[Query], Any, int], Prefix]
